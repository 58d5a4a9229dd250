import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.samplers.permutation import endless_passes, hashes, mix64, permute

KEYS = st.integers(0, 2**64 - 1)


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal counts, divided by its degrees of freedom: about 1 +- sqrt(2 / freedom)."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum() / (counts.size - 1))


def one_epoch(num_rows: int, *, key: int, epoch: int = 0) -> np.ndarray:
    return endless_passes(epoch * num_rows, num_rows, num_rows=num_rows, key=key)[1]


def test_mix64_is_splitmix64() -> None:
    """The first outputs of splitmix64 seeded with 1234567 (Steele et al., 2014), with Python's unbounded integers."""
    expected, state = [], 1234567
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(z ^ (z >> 31))
    assert expected[0] == 6457827717110365317
    assert hashes(5, key=1234567).tolist() == expected
    assert mix64(np.array([1234567])).tolist() == expected[:1]


@pytest.mark.parametrize("num_rows", [*range(1, 40), 255, 4095, 4096, 4097, 8191, 8192, 8193, 65536, 100_003])
def test_an_epoch_is_a_bijection(num_rows: int) -> None:
    for epoch in (0, 1, 10**6):
        assert np.array_equal(np.sort(one_epoch(num_rows, key=5, epoch=epoch)), np.arange(num_rows))


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 20_000), key=KEYS)
def test_permute_is_a_bijection(num_rows: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(num_rows), num_rows=num_rows, key=key)), np.arange(num_rows))


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(1, 6000), first=st.integers(0, 10**12), num=st.integers(0, 300), key=KEYS)
def test_a_stretch_is_the_same_wherever_it_is_cut(num_rows: int, first: int, num: int, key: int) -> None:
    epochs, rows = endless_passes(first, num, num_rows=num_rows, key=key)
    cut = num // 3
    parts = [endless_passes(first, cut, num_rows=num_rows, key=key)]
    parts.append(endless_passes(first + cut, num - cut, num_rows=num_rows, key=key))
    assert np.array_equal(epochs, (first + np.arange(num)) // num_rows)
    assert np.array_equal(rows, np.concatenate([part[1] for part in parts]))
    assert np.array_equal(epochs, np.concatenate([part[0] for part in parts]))


@pytest.mark.parametrize("num_rows", [7, 100, 4095, 4096, 6000])
def test_every_row_is_equally_likely_at_every_place(num_rows: int) -> None:
    num_keys = 400
    rows = np.array([one_epoch(num_rows, key=1000 + key) for key in range(num_keys)])
    cells = min(num_rows, 50)
    for place in (0, 1, num_rows // 2, num_rows - 1):
        counts = np.bincount(rows[:, place] * cells // num_rows, minlength=cells)
        expected = np.bincount(np.arange(num_rows) * cells // num_rows, minlength=cells) / num_rows * num_keys
        statistic = ((counts - expected) ** 2 / expected).sum() / (cells - 1)
        assert statistic < 1 + 5 * (2 / (cells - 1)) ** 0.5, place


@pytest.mark.parametrize("num_rows", [50, 4096, 5000])
def test_fixed_points_are_those_of_random_permutations(num_rows: int) -> None:
    """Their number is Poisson with mean 1 and variance 1: a network of too few rounds has a larger variance."""
    fixed = [int((one_epoch(num_rows, key=key) == np.arange(num_rows)).sum()) for key in range(2000)]
    assert abs(np.mean(fixed) - 1) < 5 / 2000**0.5
    assert abs(np.var(fixed) - 1) < 5 * (3 / 2000) ** 0.5


def test_neighbours_are_unrelated() -> None:
    num_rows = 64 * 256
    rows = one_epoch(num_rows, key=3)
    pairs = np.zeros((16, 16))
    np.add.at(pairs, (rows[:-1] * 16 // num_rows, rows[1:] * 16 // num_rows), 1)
    assert chi_square(pairs) < 1 + 5 * (2 / 255) ** 0.5


@pytest.mark.parametrize("num_rows", [1000, 10_000])
def test_different_keys_and_epochs_are_uncorrelated(num_rows: int) -> None:
    orders = [one_epoch(num_rows, key=key, epoch=epoch) for key in (0, 1, 2, 2**63) for epoch in (0, 1, 2)]
    correlation = np.corrcoef(orders) - np.eye(len(orders))
    assert np.abs(correlation).max() < 5 / num_rows**0.5


def test_order_is_fixed_for_all_time() -> None:
    """A run begun with one version continues with the next: these numbers may never change."""
    assert one_epoch(8, key=1).tolist() == [0, 6, 7, 4, 3, 2, 1, 5]
    assert endless_passes(3 * 10**7 + 5, 4, num_rows=10**7, key=1)[1].tolist() == [6881198, 2665186, 8427046, 3389159]


def test_draws_from_ten_million_rows_take_milliseconds() -> None:
    seconds = []
    for repetition in range(5):
        begin = time.process_time()
        endless_passes(repetition * 10**9, 100_000, num_rows=10_000_000, key=9)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.05  # 3 ms on the machine this was written on; a shuffle of the rows takes 200 ms


@pytest.mark.parametrize("num_rows", [0, 2**32 + 1])
def test_too_few_or_too_many_rows_are_refused(num_rows: int) -> None:
    with pytest.raises(ValueError, match="must have 1 to"):
        endless_passes(0, 1, num_rows=num_rows, key=0)
    assert endless_passes(0, 1, num_rows=2**32, key=0)[1].max() < 2**32
