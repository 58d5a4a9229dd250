"""Buckets: classes of like length, fixed for a whole segment, so that a micro-batch of one bucket pads little.

Examples of length x with density p(x), in buckets of width w(x), are padded by about sum p(x) w(x). For a given number
of buckets that sum is least when w(x) ~ p(x)^(-1/2), so the edges are quantiles of the density sqrt(p).

The micro-batches of a bucket differ by at most one example, so there is no incomplete one at its end, and all of a
chunk together make whole steps. No example is twice in one micro-batch.
"""

from typing import NamedTuple

import numpy as np

_NUM_CELLS = 2**16  # of equal width, from 0 to the longest example: a bucket is a run of cells
_NUM_QUANTILES = 1000  # of the sample, for its density


class Buckets(NamedTuple):
    """Which bucket a length belongs to."""

    upper: np.ndarray  # (K,) float64, ascending: the longest an example of the bucket may be
    bucket_of_cell: np.ndarray  # (2**16,) uint16

    @property
    def longest(self) -> float:
        """The longest an example of any bucket may be."""
        return float(self.upper[-1])

    def of(self, lengths: np.ndarray) -> np.ndarray:
        """Return the bucket of each length: (N,) uint16. Longer than the longest counts as the longest."""
        longest = np.float32(self.longest)
        cells = np.minimum(lengths, longest) * (np.float32(_NUM_CELLS - 1) / longest)
        return self.bucket_of_cell.take(cells.astype(np.uint16))


def make_buckets(sample: np.ndarray, *, num_buckets: int, longest: float) -> Buckets:
    """Return at most `num_buckets` buckets for lengths distributed like the sample, none longer than `longest`."""
    quantiles = np.sort(sample.astype(np.float64))
    if len(quantiles) > _NUM_QUANTILES:
        quantiles = quantiles[np.arange(_NUM_QUANTILES) * (len(quantiles) - 1) // (_NUM_QUANTILES - 1)]
    roots = np.concatenate([[0.0], np.cumsum(np.sqrt(np.diff(quantiles)))])  # the integral of sqrt(p), up to a factor
    edges = np.interp(np.arange(1, num_buckets) * (roots[-1] / num_buckets), roots, quantiles)
    cell = longest / (_NUM_CELLS - 1)
    last_cell = _NUM_CELLS - 1  # holds the longest alone, so it joins the cells before it
    ends = np.floor(edges / cell).astype(np.int64)
    ends = np.unique(np.append(ends[ends < last_cell - 1], last_cell))
    bucket_of_cell = np.searchsorted(ends, np.arange(_NUM_CELLS)).astype(np.uint16)
    return Buckets(upper=np.append((ends[:-1] + 1) * cell, longest), bucket_of_cell=bucket_of_cell)


def merge_sparse(fill: np.ndarray) -> np.ndarray:
    """Join neighbours that are both sparse; return the new number of each bucket, ascending, (K,) uint16.

    fill (K,) is how many micro-batches each bucket fills. A bucket that fills less than two is sparse: alone it would
    end in a micro-batch that is nearly empty, or always in the same company.
    """
    merged = np.empty(len(fill), np.uint16)
    number, group_fill = -1, np.inf
    for bucket, bucket_fill in enumerate(fill.tolist()):
        if number >= 0 and group_fill < 2 and bucket_fill < 2:
            group_fill += bucket_fill
        else:
            number += 1
            group_fill = bucket_fill
        merged[bucket] = number
    return merged


def count_micro_batches(num_examples: np.ndarray, *, fewest: np.ndarray, multiple_of: int) -> np.ndarray:
    """Return how many micro-batches each bucket is split into: (K,) int64.

    num_examples (K,) are those of each bucket, fewest (K,) the micro-batches they fit in, fewest <= num_examples.
    The sum is the next multiple of `multiple_of`; the micro-batches that this adds are shared out in proportion, and
    only where there are too few examples the sum stays short of it, every example a micro-batch of its own.
    """
    counts = fewest.astype(np.int64)
    missing = -int(counts.sum()) % multiple_of
    missing = min(missing, int((num_examples - counts).sum()))
    while missing:
        room = num_examples - counts
        share = np.minimum(room, missing * counts // counts[room > 0].sum())
        if not share.any():  # fewer are missing than there are buckets: one each, where one more changes least
            largest_first = np.argsort(np.where(room > 0, -counts, 1), kind="stable")
            share[largest_first[: min(missing, int((room > 0).sum()))]] = 1
        counts += share
        missing -= int(share.sum())
    return counts


def split_evenly(num_examples: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the micro-batches as stretches of the examples sorted by bucket: (starts, sizes), (counts.sum(),) int64.

    counts (K,): how many micro-batches each bucket becomes.
    """
    number_in_bucket = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    each, more = np.divmod(num_examples, counts)  # the first `more` of a bucket get one more
    sizes = np.repeat(each, counts) + (number_in_bucket < np.repeat(more, counts))
    return np.cumsum(sizes) - sizes, sizes


def group_copies(bucket: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return an order of the examples by bucket in which equal ones stand side by side: (N,) int64."""
    by_identity = np.argsort(identity, kind="stable")
    return by_identity[np.argsort(bucket[by_identity], kind="stable")]


def max_copies(bucket: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return how often the most frequent example of each bucket occurs: (K,) int64.

    The examples are in the order of `group_copies`.
    """
    is_first = np.append(True, identity[1:] != identity[:-1])
    firsts = np.flatnonzero(is_first)
    copies = np.diff(firsts, append=len(identity))
    first_of_bucket = np.searchsorted(bucket[firsts], np.arange(bucket[-1] + 1))
    return np.maximum.reduceat(copies, first_of_bucket)


def spread_copies(num_examples: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return an order of the examples sorted by bucket in which `split_evenly` separates neighbours: (N,) int64.

    So equal examples that stand side by side are never in one micro-batch, if a bucket becomes at least as many
    micro-batches as it has copies.
    """
    number_in_bucket = np.arange(num_examples.sum()) - np.repeat(np.cumsum(num_examples) - num_examples, num_examples)
    first_of_bucket = np.repeat(np.cumsum(counts) - counts, num_examples)
    return np.argsort(first_of_bucket + number_in_bucket % np.repeat(counts, num_examples), kind="stable")
