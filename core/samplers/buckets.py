"""Buckets: classes of like length, fixed for a whole segment, so that a micro-batch of one bucket pads little.

Examples of length x with density p(x), in buckets of width w(x), are padded by about sum p(x) w(x). For a given number
of buckets that sum is least when w(x) ~ p(x)^(-1/2), so the edges are quantiles of the density sqrt(p).
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
