"""How many micro-batches each bucket of a chunk becomes, and which of its examples go into which.

The micro-batches of a bucket differ by at most one example, so there is no incomplete one at its end, and all of a
chunk together make whole steps. No example is twice in one micro-batch.
"""

import numpy as np


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
