from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.samplers.micro_batches import count_micro_batches, group_copies, max_copies, split_evenly, spread_copies

BUCKETS = st.lists(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), min_size=1, max_size=9
)


@given(buckets=BUCKETS, multiple_of=st.integers(1, 64))
def test_micro_batches_make_whole_steps(buckets: list[tuple[int, int]], multiple_of: int) -> None:
    num_cuts, least = np.array(buckets).T
    counts = count_micro_batches(num_cuts, fewest=least, multiple_of=multiple_of)
    assert (counts >= least).all() and (counts <= num_cuts).all()
    wanted = -(-least.sum() // multiple_of) * multiple_of
    assert counts.sum() == min(wanted, num_cuts.sum())


def test_additional_micro_batches_are_shared_in_proportion() -> None:
    counts = count_micro_batches(np.array([1000, 500, 10]), fewest=np.array([100, 50, 1]), multiple_of=181)
    assert counts.sum() == 181
    assert np.abs(counts - [120, 60, 1]).max() <= 1


@given(buckets=BUCKETS)
def test_a_bucket_is_split_evenly_and_in_order(buckets: list[tuple[int, int]]) -> None:
    num_cuts, counts = np.array(buckets).T
    starts, sizes = split_evenly(num_cuts, counts)
    assert sizes.sum() == num_cuts.sum()
    assert starts.tolist() == np.cumsum(np.append(0, sizes[:-1])).tolist()
    first = 0
    for cuts, num in buckets:
        of_bucket = sizes[first : first + num]
        assert of_bucket.sum() == cuts
        assert of_bucket.max() - of_bucket.min() <= 1
        first += num


@given(cuts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=120), more=st.integers(0, 5))
def test_equal_cuts_are_never_in_one_micro_batch(cuts: list[tuple[int, int]], more: int) -> None:
    names = sorted({bucket for bucket, _ in cuts})
    bucket = np.array([names.index(bucket) for bucket, _ in cuts], np.uint16)
    identity = np.array([hash((7, *cut)) % 2**64 for cut in cuts], np.uint64)
    num_cuts = np.bincount(bucket)
    order = group_copies(bucket, identity)
    most = max_copies(bucket[order], identity[order])
    counted = Counter(zip(bucket.tolist(), identity.tolist(), strict=True))
    assert most.tolist() == [max(n for (b, _), n in counted.items() if b == k) for k in range(len(names))]
    counts = np.minimum(most + more, num_cuts)
    order = order[spread_copies(num_cuts, counts)]
    assert sorted(order.tolist()) == list(range(len(cuts)))
    bucket_of_batch = np.repeat(np.arange(len(names)), counts)
    for number, (start, size) in enumerate(zip(*split_evenly(num_cuts, counts), strict=True)):
        batch = order[start : start + size]
        assert len(set(identity[batch].tolist())) == size > 0
        assert (bucket[batch] == bucket_of_batch[number]).all()
