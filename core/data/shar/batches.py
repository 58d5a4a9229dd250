"""Micro-batches of one reader of a Shar directory: its shards one after another, mixed in a buffer, packed by length.

A reader is one loader worker of one dp rank. The shards are dealt out among all readers, anew for each seed, so no two
of them ever read the same example; a reader goes through its own shards again and again, each time in another order.
"""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch.utils.data

from core.data.batch import MakeSample, PaddedBatch, Sample, collate
from core.data.reading import BadSample, read_cut
from core.data.shar.shards import Shar, Shard
from core.samplers.plan import PlanConfig
from core.seeding import generator

if TYPE_CHECKING:
    from lhotse import MonoCut

BUFFER_CUTS = 1000  # encoded audio of so many cuts is held by each reader: some 250 MB of FLAC


@dataclass(frozen=True)
class SharBatches(torch.utils.data.IterableDataset[PaddedBatch]):
    """The endless micro-batches of a dp rank; in a loader's worker, of that worker alone.

    All follows from `seed` and the reader's number, never from a worker's own seed.
    """

    shar: Shar
    make_sample: MakeSample
    dummy: Sample
    sample_rate_hz: int
    plan: PlanConfig
    seed: int
    first_reader: int
    num_readers: int

    def __iter__(self) -> Iterator[PaddedBatch]:
        worker = torch.utils.data.get_worker_info()
        reader = self.first_reader + (0 if worker is None else worker.id)
        damaged: list[BadSample] = []
        num_read = 0
        for cuts in self._packed(reader, damaged):
            samples: list[Sample] = []
            bad, damaged[:] = list(damaged), []
            for cut in cuts:
                rng = generator(self.seed, "shar.sample", reader, num_read)
                num_read += 1
                try:
                    samples.append(self.make_sample(read_cut(cut, sample_rate_hz=self.sample_rate_hz), rng))
                except BadSample as error:
                    bad.append(error)
            yield collate(samples, bad=bad, dummy=self.dummy)

    def shards_of(self, reader: int) -> list[Shard]:
        """Return the shards that this reader alone reads."""
        dealt = generator(self.seed, "shar.deal").permutation(len(self.shar.shards))
        return [self.shar.shards[place] for place in dealt[reader :: self.num_readers]]

    def _packed(self, reader: int, damaged: list[BadSample]) -> Iterator[list["MonoCut"]]:
        """Yield micro-batches of cuts of similar length, drawn from a buffer kept full and sorted by length."""
        shards = self.shards_of(reader)
        num_own = sum(int(is_wanted(shard.durations_s, self.plan).sum()) for shard in shards)
        size = min(BUFFER_CUTS, self.plan.chunk_draws, max(num_own, 1))
        rng = generator(self.seed, "shar.pack", reader)
        buffer: list[MonoCut] = []
        for cut in self._cuts(reader, shards, damaged):
            insort(buffer, cut, key=lambda one: one.duration)
            if len(buffer) == size:
                taken = _take(buffer, plan=self.plan, rng=rng)
                yield [buffer[place] for place in taken]
                for place in sorted(taken, reverse=True):
                    del buffer[place]

    def _cuts(self, reader: int, shards: list[Shard], damaged: list[BadSample]) -> Iterator["MonoCut"]:
        """Yield the wanted cuts of the shards, over and over. ValueError where a whole pass finds none."""
        number = 0
        while True:
            num_found = 0
            for place in generator(self.seed, "shar.order", reader, number).permutation(len(shards)):
                for item in shards[place].read():
                    if isinstance(item, BadSample):
                        damaged.append(item)
                    elif is_wanted(np.array(item.duration), self.plan):
                        num_found += 1
                        yield item
            if not num_found:
                names = ", ".join(shard.cuts.name for shard in shards)
                raise ValueError(
                    f"{self.shar}: no cut within the limits of the plan can be read from {names}, all that reader "
                    f"{reader} of {self.num_readers} has; make the directory again, or use a lower loader.num_workers"
                    f"{''.join(f'; {one}' for one in damaged[:1])}"
                )
            number += 1


def is_wanted(durations_s: np.ndarray, plan: PlanConfig) -> np.ndarray:
    """Return which cuts are used, by the same comparisons as in an exact plan."""
    seconds = durations_s.astype(np.float32)
    is_long_enough: np.ndarray = seconds >= np.float32(plan.min_cut_s)
    return is_long_enough & (seconds <= np.float32(plan.allowed_s)) if plan.over_budget == "skip" else is_long_enough


def _take(buffer: list["MonoCut"], *, plan: PlanConfig, rng: np.random.Generator) -> list[int]:
    """Return places in the sorted buffer: a random cut, others of about its length, as many as the plan allows."""
    first = int(rng.integers(len(buffer)))
    longest_s = buffer[first].duration
    most = int(plan.budget.capacity(np.array(longest_s)))
    width = min(len(buffer), max(most, len(buffer) // plan.num_buckets))
    begin = min(max(0, first - int(rng.integers(width))), len(buffer) - width)
    taken, ids = [first], {buffer[first].id}
    for place in (begin + rng.permutation(width)).tolist():
        longest_s = max(longest_s, buffer[place].duration)
        if len(taken) >= plan.budget.capacity(np.array(longest_s)):
            break
        if buffer[place].id not in ids:  # a cut of the next pass may lie beside itself
            taken.append(place)
            ids.add(buffer[place].id)
    return taken
