"""From draws of the plan to a batch: read, transform with keyed randomness, collate. Runs in the loader's workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch.utils.data

from core.data.batch import Batch, Sample, collate
from core.data.index import ManifestIndex
from core.data.reading import BadSample, Reading, read_cut
from core.samplers.plan import Draw
from core.seeding import generator

MakeSample = Callable[[Reading, np.random.Generator | None], Sample]


@dataclass(frozen=True)
class SpeechDataset(torch.utils.data.Dataset[Batch]):
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

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:
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
