"""What a stream asks of a dataset: SpeechDataset, MaskedSpeech, or any other that knows what a micro-batch is."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from core.samplers.plan import Draw


class PlannedDataset(Protocol):
    """A dataclass; `dataset[draws]` is the batch of a micro-batch in `segment` of the plan."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def segment(self) -> int: ...
    def __getitem__(self, draws: Sequence[Draw]) -> Any: ...
