"""What one forward sees, and how draws of the plan become it: read, transform with keyed randomness, collate.

A batch is padded, and knows, on the CPU, how much the loss is averaged over. Made in the loader's workers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from core.data.index import ManifestIndex
from core.data.reading import BadSample, Reading, read_cut
from core.samplers.plan import Draw
from core.seeding import generator


@dataclass(frozen=True)
class Sample:
    """One example, ready to be collated."""

    sample_id: str
    inputs: Tensor  # (T, F) features or (S,) waveform
    targets: Tensor  # (U,) int64
    num_targets: int  # what counts for the loss; 0 where the example can teach nothing (infeasible for CTC)
    audio_s: float


@dataclass(frozen=True)
class TensorFields:
    """A batch of any fields, whose tensors move to a device together."""

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`; the host does not wait for them."""
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()})

    def pin_memory(self) -> Self:
        """Return the batch in pinned memory; the loader calls it where batches go to a GPU."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class PaddedBatch(TensorFields):
    """Examples padded with zeros to the longest.

    `num_targets` is what the loss sum is divided by, counted here because collation knows what will count.
    An empty micro-batch is one dummy example with weight 0, so that no rank is missing from a collective.
    """

    inputs: Tensor  # (B, T, F) or (B, S)
    input_lengths: Tensor  # (B,) int64
    targets: Tensor  # (B, U) int64
    target_lengths: Tensor  # (B,) int64
    sample_ids: list[str]
    num_targets: int
    length: float  # of the examples
    padded_length: float  # with padding
    bad: list[BadSample] = field(default_factory=list)
    unit: str = "s"


def collate(samples: Sequence[Sample], *, bad: Sequence[BadSample] = (), dummy: Sample) -> PaddedBatch:
    """Pad examples into a batch; where none is left, `dummy` stands in and counts for nothing."""
    rows = list(samples) or [dummy]
    input_lengths = torch.tensor([len(row.inputs) for row in rows])  # (B,)
    target_lengths = torch.tensor([len(row.targets) for row in rows])  # (B,)
    longest_s = max((row.audio_s for row in samples), default=0.0)
    return PaddedBatch(
        inputs=torch.nn.utils.rnn.pad_sequence([row.inputs for row in rows], batch_first=True),
        input_lengths=input_lengths,
        targets=torch.nn.utils.rnn.pad_sequence([row.targets for row in rows], batch_first=True),
        target_lengths=target_lengths,
        sample_ids=[row.sample_id for row in samples],
        num_targets=sum(row.num_targets for row in samples),
        length=sum(row.audio_s for row in samples),
        padded_length=longest_s * len(samples),
        bad=list(bad),
    )


MakeSample = Callable[[Reading, np.random.Generator | None], Sample]


@dataclass(frozen=True)
class SpeechDataset(torch.utils.data.Dataset[PaddedBatch]):
    """`dataset[draws]` is the batch of one micro-batch of the plan.

    `make_sample(reading, rng)` turns one utterance into a Sample and may raise BadSample. Its randomness is keyed by
    (seed, segment, source, epoch, row), so an example is the same in whatever batch, worker or order it is read;
    without a seed (evaluation) rng is None and nothing may be random.
    """

    indexes: Sequence[ManifestIndex]
    make_sample: MakeSample
    dummy: Sample
    sample_rate_hz: int
    seed: int | None = None
    segment: int = 0  # of the plan: the epochs of each begin at 0
    allowed_s: float | None = None

    def __getitem__(self, draws: Sequence[Draw]) -> PaddedBatch:
        samples: list[Sample] = []
        bad: list[BadSample] = []
        for source, epoch, row in draws:
            rng = None if self.seed is None else generator(self.seed, "sample", self.segment, source, epoch, row)
            try:
                cut = self.indexes[source].read(row)
                reading = read_cut(cut, sample_rate_hz=self.sample_rate_hz, allowed_s=self.allowed_s)
                samples.append(self.make_sample(reading, rng))
            except BadSample as error:
                bad.append(error)
        return collate(samples, bad=bad, dummy=self.dummy)
