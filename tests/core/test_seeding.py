import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from core.seeding import generator, key64, seed_everything, seed_sequence


def draw_everywhere() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_same_place_gives_same_numbers_in_another_process() -> None:
    code = "from core.seeding import *; print(key64(7, 'mask', 3, 5), generator(7, 'mask', 3).random())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert other == [str(key64(7, "mask", 3, 5)), str(generator(7, "mask", 3).random())]


def test_value_is_fixed_for_all_time() -> None:
    """A run begun with one version continues with the next."""
    assert key64(1, "a", 2) == 5934329165120469069


def test_places_that_differ_in_anything_are_independent() -> None:
    places = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 0, 0), (0, "a", 1), (0, "a", -1), (0, "a", 1, 0)]
    places += [(0, "a", 0, 1), (0, "a", 2**32), (0, "a", 2**32 + 1), (2**32, "a"), (10, "a"), (1, "0a"), (0, 'a", 1')]
    assert len({key64(seed, stream, *position) for seed, stream, *position in places}) == len(places)
    draws = np.array([generator(seed, stream, *position).random(2000) for seed, stream, *position in places])
    correlation = np.corrcoef(draws) - np.eye(len(places))
    assert np.abs(correlation).max() < 0.1  # 4.5 standard deviations


def test_numpy_integers_count_as_integers() -> None:
    assert key64(int(np.int64(3)), "a", np.int32(4)) == key64(3, "a", 4)
    with pytest.raises(TypeError):
        seed_sequence(0, "a", 1.0)  # type: ignore[arg-type]


def test_keys_are_uniform_64_bit_numbers() -> None:
    keys = np.array([key64(0, "k", i) for i in range(2000)], np.uint64)
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.06  # 5 standard deviations of 0.011


def test_seed_everything_forgets_what_was_drawn_before() -> None:
    seed_everything(1, "micro_batch", 5)
    first = draw_everywhere()
    draw_everywhere()
    seed_everything(1, "micro_batch", 5)
    assert draw_everywhere() == first
    seed_everything(1, "micro_batch", 6)
    assert not set(draw_everywhere()) & set(first)
    assert len(set(first)) == 3
