"""How long a run trains, and what the loop does on the way."""

from typing import Annotated

from pydantic import Field

from core.config import section
from core.train.stop import EarlyStopConfig

Count = Annotated[int, Field(ge=1)]


@section
class TrainConfig:
    """`max_steps` updates; a line of metrics every `log_every_steps`, a validation every `validate_every_steps`.

    Bad samples are skipped until more than `max_bad_share` of the examples (and more than 10) are bad: exit code 89.
    `max_skipped_in_row` updates without a finite gradient: exit code 88.
    """

    max_steps: Count
    log_every_steps: Count = 10
    validate_every_steps: Count | None = None
    early_stop: EarlyStopConfig | None = None
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    max_skipped_in_row: Count = 20

    def __post_init__(self) -> None:
        if self.early_stop is not None and self.validate_every_steps is None:
            raise ValueError("early_stop needs validate_every_steps: set it, or remove early_stop")
