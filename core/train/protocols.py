"""What training asks of data: batches, steps of them, and an endless supply of steps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch


class Batch(Protocol):
    """What the loop asks of a micro-batch.

    `length` is that of all its examples, `padded_length` includes padding, both in `unit`: `s` (of audio) or `tokens`.
    """

    @property
    def num_targets(self) -> int: ...
    @property
    def sample_ids(self) -> Sequence[str]: ...
    @property
    def length(self) -> float: ...
    @property
    def padded_length(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def bad(self) -> Sequence[Any]: ...
    def to(self, device: torch.device) -> Any: ...


class Step(Protocol):
    """This rank's micro-batches of a step, and where the data stands after it."""

    @property
    def batches(self) -> Sequence[Batch]: ...
    @property
    def position(self) -> Mapping[str, Any]: ...
    @property
    def epoch(self) -> float: ...


class Data(Protocol):
    """Endless steps from a position."""

    @property
    def num_examples(self) -> int: ...
    def steps(self, position: Mapping[str, Any] | None = None) -> Iterator[Step]: ...
