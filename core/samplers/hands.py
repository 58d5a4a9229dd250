"""Dealing the cuts of a chunk into micro-batches, as one deals cards: the cuts of a bucket into equal hands.

A bucket's hands differ by at most one cut, so there is no incomplete one at its end, and all hands of a chunk together
make whole steps.
"""

import numpy as np


def count_hands(num_cuts: np.ndarray, *, least: np.ndarray, multiple_of: int) -> np.ndarray:
    """How many micro-batches each bucket is dealt into: (K,) int64.

    num_cuts (K,) are the cuts of each bucket, least (K,) the fewest micro-batches they fit in, least <= num_cuts.
    The sum is the next multiple of `multiple_of`; the micro-batches that this adds are shared out in proportion, and
    only where there are too few cuts the sum stays short of it, every cut a micro-batch of its own.
    """
    hands = least.astype(np.int64)
    missing = -int(hands.sum()) % multiple_of
    missing = min(missing, int((num_cuts - hands).sum()))
    while missing:
        room = num_cuts - hands
        share = np.minimum(room, missing * hands // hands[room > 0].sum())
        if not share.any():  # fewer are missing than there are buckets: one each, where one more changes least
            most_hands = np.argsort(np.where(room > 0, -hands, 1), kind="stable")
            share[most_hands[: min(missing, int((room > 0).sum()))]] = 1
        hands += share
        missing -= int(share.sum())
    return hands


def deal(num_cuts: np.ndarray, hands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hands as stretches of the cuts sorted by bucket: (starts, sizes), each (hands.sum(),) int64."""
    number_in_bucket = np.arange(hands.sum()) - np.repeat(np.cumsum(hands) - hands, hands)
    each, more = np.divmod(num_cuts, hands)  # the first `more` hands get one more
    sizes = np.repeat(each, hands) + (number_in_bucket < np.repeat(more, hands))
    return np.cumsum(sizes) - sizes, sizes


def equals_together(bucket: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """An order of the cuts by bucket in which equal cuts stand side by side: (N,) int64."""
    by_identity = np.argsort(identity, kind="stable")
    return by_identity[np.argsort(bucket[by_identity], kind="stable")]


def most_copies(bucket: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """How often the most frequent cut of each bucket occurs, for cuts in the order of `equals_together`: (K,) int64."""
    is_first = np.append(True, identity[1:] != identity[:-1])
    firsts = np.flatnonzero(is_first)
    copies = np.diff(firsts, append=len(identity))
    first_of_bucket = np.searchsorted(bucket[firsts], np.arange(bucket[-1] + 1))
    return np.maximum.reduceat(copies, first_of_bucket)


def one_by_one(num_cuts: np.ndarray, hands: np.ndarray) -> np.ndarray:
    """An order of the cuts sorted by bucket in which `deal` gives neighbours to different hands: (N,) int64.

    So equal cuts that stand side by side are never in one hand, if a bucket has at least as many hands as copies.
    """
    number_in_bucket = np.arange(num_cuts.sum()) - np.repeat(np.cumsum(num_cuts) - num_cuts, num_cuts)
    first_hand = np.repeat(np.cumsum(hands) - hands, num_cuts)
    return np.argsort(first_hand + number_in_bucket % np.repeat(hands, num_cuts), kind="stable")
