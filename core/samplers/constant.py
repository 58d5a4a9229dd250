"""Micro-batches of one size, for losses that compare the examples of a micro-batch with each other.

A chunk is then a fixed number of draws, whole steps of them, so it may end in the middle of an epoch; the edges between
its buckets move to multiples of the size.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np

from core.samplers.admission import Admitted
from core.samplers.blend import Blend
from core.samplers.bucketing import Bucketing, BucketingConfig
from core.samplers.micro_batches import max_copies
from core.samplers.rules import Chunk


class ConstantBucketing(Bucketing):
    """Makes chunks whose micro-batches hold exactly `size` different examples each."""

    def __init__(self, config: BucketingConfig, admitted: Sequence[Admitted], sample: np.ndarray, *, size: int) -> None:
        super().__init__(config, admitted, sample)
        self._size = size
        self._draws_of_chunk = draws_of_chunk(admitted, config=config, size=size)

    def stretch(self, blend: Blend, number: int) -> tuple[int, int]:
        return number * self._draws_of_chunk, self._draws_of_chunk

    def advice(self, chunk: Chunk) -> str:
        return ""  # every micro-batch is full

    def _classify(self, lengths: np.ndarray, identity: np.ndarray | None) -> np.ndarray:
        bucket = round_buckets(super()._classify(lengths, identity), size=self._size)
        return bucket if identity is None else merge_crowded(bucket, identity, size=self._size)


def draws_of_chunk(admitted: Sequence[Admitted], *, config: BucketingConfig, size: int) -> int:
    """Return how many draws a chunk has: whole steps, about one pass over the sources, at most about `chunk_draws`.

    More where a source is so small that its examples could not all be in different micro-batches. Raise ValueError
    where a source has too few examples for that in any case.
    """
    keys = config.budget.keys
    step = size * config.micro_batches_per_step
    weights = np.array([one.source.weight for one in admitted])
    share = weights / weights.sum()
    sizes = np.array([one.num for one in admitted])
    if len(admitted) == 1 and step % sizes[0] == 0 and sizes[0] >= size:
        return step  # whole epochs
    crowding = size * share / sizes  # how often an example occurs in a micro-batch, on average
    if crowding.max() >= 1:
        worst = admitted[int(crowding.argmax())]
        raise ValueError(
            f"source {worst.source.name!r} has {worst.num:,} {keys.example}s, and each micro-batch takes "
            f"{size * float(share[crowding.argmax()]):g} different ones of it: lower plan.{keys.max_examples}"
        )
    # of n draws, n * share + 2 at most are of a source of r cuts, and none of these more than n * share / r + 2 times;
    # that must not be more than there are micro-batches
    fewest = ceil(2 / config.micro_batches_per_step / (1 - crowding.max()))
    one_pass = int(np.min(np.ceil(sizes / share)))
    return max(min(config.chunk_draws, one_pass) // step, fewest) * step


def round_buckets(bucket: np.ndarray, *, size: int) -> np.ndarray:
    """Return the buckets (N,) of N examples, N a multiple of `size`, such that each has a multiple of `size`.

    As few examples as possible move to a neighbour; the buckets are numbered anew.
    """
    ends = np.cumsum(np.bincount(bucket))
    rounded = np.unique(np.append((ends[:-1] + size // 2) // size * size, len(bucket)))
    place = np.empty(len(bucket), np.int64)
    place[np.argsort(bucket, kind="stable")] = np.arange(len(bucket))
    return np.searchsorted(rounded[rounded > 0], place, side="right").astype(np.uint16)


def merge_crowded(bucket: np.ndarray, identity: np.ndarray, *, size: int) -> np.ndarray:
    """Return rounded buckets, merged with neighbours until none holds an example more often than micro-batches."""
    while True:
        order = np.lexsort((identity, bucket))
        num_examples = np.bincount(bucket)
        crowded = np.flatnonzero(max_copies(bucket[order], identity[order]) > num_examples // size)
        if len(crowded) == 0:
            return bucket
        assert len(num_examples) > 1, "draws_of_chunk sees to it that a chunk has enough micro-batches"
        joined = min(int(crowded[0]), len(num_examples) - 2)  # with the next one
        bucket = np.where(bucket > joined, bucket - 1, bucket).astype(np.uint16)
