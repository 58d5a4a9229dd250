"""Micro-batches of exactly `max_cuts` cuts each, for losses that compare the examples of a micro-batch with each other.

A chunk is then a fixed number of draws, whole steps of them, so it may end in the middle of an epoch; the edges between
its buckets move to multiples of `max_cuts`.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np

from core.samplers.admission import Admitted
from core.samplers.hands import most_copies
from core.samplers.rules import PlanConfig


def draws_of_chunk(admitted: Sequence[Admitted], config: PlanConfig) -> int:
    """How many draws a chunk has: whole steps, about one pass over the sources, at most about `chunk_draws`.

    More where a source is so small that its cuts could not all be in different micro-batches. ValueError where a
    source has too few cuts for that in any case.
    """
    size = config.size
    assert size is not None
    step = size * config.micro_batches_per_step
    weights = np.array([one.source.weight for one in admitted])
    share = weights / weights.sum()
    sizes = np.array([one.num for one in admitted])
    if len(admitted) == 1 and step % sizes[0] == 0 and sizes[0] >= size:
        return step  # whole epochs
    crowding = size * share / sizes  # how often a cut occurs in a micro-batch, on average
    if crowding.max() >= 1:
        worst = admitted[int(crowding.argmax())]
        raise ValueError(
            f"source {worst.source.name!r} has {worst.num:,} cuts, and each micro-batch takes "
            f"{size * float(share[crowding.argmax()]):g} different ones of it: lower plan.max_cuts"
        )
    # of n draws, n * share + 2 at most are of a source of r cuts, and none of these more than n * share / r + 2 times;
    # that must not be more than there are micro-batches
    fewest = ceil(2 / config.micro_batches_per_step / (1 - crowding.max()))
    one_pass = int(np.min(np.ceil(sizes / share)))
    return max(min(config.chunk_draws, one_pass) // step, fewest) * step


def even_buckets(bucket: np.ndarray, *, size: int) -> np.ndarray:
    """The buckets (N,) of N cuts, N a multiple of `size`, with as few cuts moved to a neighbour as give each bucket
    a multiple of `size`; numbered anew.
    """
    ends = np.cumsum(np.bincount(bucket))
    even_ends = np.unique(np.append((ends[:-1] + size // 2) // size * size, len(bucket)))
    place = np.empty(len(bucket), np.int64)
    place[np.argsort(bucket, kind="stable")] = np.arange(len(bucket))
    return np.searchsorted(even_ends[even_ends > 0], place, side="right").astype(np.uint16)


def room_for_copies(bucket: np.ndarray, identity: np.ndarray, *, size: int) -> np.ndarray:
    """Even buckets joined with their neighbours until none holds a cut more often than it has micro-batches."""
    while True:
        order = np.lexsort((identity, bucket))
        num_cuts = np.bincount(bucket)
        crowded = np.flatnonzero(most_copies(bucket[order], identity[order]) > num_cuts // size)
        if len(crowded) == 0:
            return bucket
        assert len(num_cuts) > 1, "draws_of_chunk sees to it that a chunk has enough micro-batches"
        joined = min(int(crowded[0]), len(num_cuts) - 2)  # with the next one
        bucket = np.where(bucket > joined, bucket - 1, bucket).astype(np.uint16)
