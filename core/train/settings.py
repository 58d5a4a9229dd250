"""How long a run trains, and what the loop does on the way."""

from dataclasses import field
from typing import Annotated

from pydantic import Field

from core.config.schema import section
from core.job.stop import EarlyStopConfig
from core.job.watchdog import WatchdogConfig
from core.timing.phases import TimingConfig

Count = Annotated[int, Field(ge=1)]


@section
class TrainConfig:
    """`max_steps` updates; a line of metrics every `log_every_steps`, a validation every `validate_every_steps`.

    Bad samples are skipped until more than `max_bad_share` of the examples (and more than 10) are bad: exit code 89.
    More than `max_skipped_in_row` updates in a row without a finite gradient: back to the last checkpoint, once, with
    the data that follows; if that does not help, exit code 88.
    A rank that takes more than `straggler_ratio` x the mean of all ranks is named in a warning.
    """

    max_steps: Count
    log_every_steps: Count = 10
    validate_every_steps: Count | None = None
    early_stop: EarlyStopConfig | None = None
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    max_skipped_in_row: Count = 20
    straggler_ratio: Annotated[float, Field(ge=1)] = 1.3
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)

    def __post_init__(self) -> None:
        if self.early_stop is not None and self.validate_every_steps is None:
            raise ValueError("early_stop needs validate_every_steps: set it, or remove early_stop")
