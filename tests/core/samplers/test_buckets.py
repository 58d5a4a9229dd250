from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.samplers.buckets import make_buckets, merge_sparse

LENGTHS = st.lists(st.floats(0.0625, 40, width=32), min_size=1, max_size=300).map(lambda x: np.array(x, np.float32))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, num_buckets=st.integers(1, 50))
def test_buckets_are_ascending_classes_of_length(lengths: np.ndarray, num_buckets: int) -> None:
    longest = float(lengths.max())
    buckets = make_buckets(lengths, num_buckets=num_buckets, longest=longest)
    assert 1 <= len(buckets.upper) <= num_buckets
    assert (np.diff(buckets.upper) > 0).all()
    assert buckets.longest == longest
    number = buckets.of(lengths).astype(int)
    order = np.argsort(lengths)
    assert (np.diff(number[order]) >= 0).all()
    assert (lengths <= buckets.upper[number] * (1 + 1e-6)).all()
    lower = np.append(0, buckets.upper)[number]
    assert (lengths >= lower * (1 - 1e-6)).all()


def test_longer_than_the_longest_counts_as_the_longest() -> None:
    buckets = make_buckets(np.arange(1, 11, dtype=np.float32), num_buckets=5, longest=10.0)
    assert buckets.of(np.array([10, 11, 1e9], np.float32)).tolist() == [4, 4, 4]


def test_equal_lengths_make_one_bucket() -> None:
    buckets = make_buckets(np.full(100, 30, np.float32), num_buckets=20, longest=30.0)
    assert np.unique(buckets.of(np.full(100, 30, np.float32))).size == 1


def test_edges_pad_less_than_equal_shares_and_equal_widths() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.gamma(9, 1.4, 50_000).clip(1, 60).astype(np.float32)
    buckets = make_buckets(lengths, num_buckets=20, longest=float(lengths.max()))

    def padding(edges: np.ndarray) -> float:
        return float((edges[np.searchsorted(edges, lengths)] - lengths).mean())

    ours = padding(np.append(buckets.upper[:-1], np.float32(1e9).clip(0, lengths.max())))
    assert ours < 0.8 * padding(np.quantile(lengths, np.arange(1, 21) / 20))
    assert ours < 0.6 * padding(np.linspace(0, lengths.max(), 21)[1:])


def test_merge_joins_sparse_neighbours_only() -> None:
    assert merge_sparse(np.array([0.5, 0.5, 0.5, 0.5, 0.5])).tolist() == [0, 0, 0, 0, 1]
    assert merge_sparse(np.array([5, 0.1, 9, 0.2, 0.3, 7])).tolist() == [0, 1, 2, 3, 3, 4]
    assert merge_sparse(np.array([1.9, 1.9, 1.9])).tolist() == [0, 0, 1]


@given(fill=st.lists(st.floats(0.01, 5), min_size=1, max_size=30))
def test_merge_leaves_no_two_sparse_neighbours(fill: list[float]) -> None:
    merged = merge_sparse(np.array(fill))
    assert set(np.diff(merged.astype(int))) <= {0, 1}
    groups = [[f for f, m in zip(fill, merged, strict=True) if m == number] for number in range(merged[-1] + 1)]
    for group, after in pairwise(groups):
        assert sum(group) >= 2 or after[0] >= 2
    for group in groups:
        assert len(group) == 1 or max(group) < 2
        assert len(group) == 1 or sum(group) < 4
