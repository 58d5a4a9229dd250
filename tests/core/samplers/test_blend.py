from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.samplers.admission import Source, admit
from core.samplers.blend import Blend
from core.samplers.settings import PlanConfig

RULES = PlanConfig(micro_batches_per_step=1, max_duration_s=100.0)


def make_blend(sizes: Sequence[int], weights: Sequence[int], *, seed: int = 0, segment: int = 0) -> Blend:
    sources = [
        Source(f"s{number}", np.arange(1, size + 1, dtype=np.float32) / size, weight)
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=True))
    ]
    return Blend([admit(source, RULES.budget) for source in sources], seed=seed, segment=segment)


def shares(blend: Blend, first: int, num: int) -> list[int]:
    return np.bincount(blend.draws(first, num).source, minlength=len(blend.admitted)).tolist()


SOURCES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(sources=SOURCES, first=st.integers(0, 10**9), num=st.integers(0, 200))
def test_any_stretch_equals_the_stream_walked_draw_by_draw(
    sources: list[tuple[int, int]], first: int, num: int
) -> None:
    sizes, weights = zip(*sources, strict=True)
    blend = make_blend(sizes, weights)
    draws = blend.draws(first, num)
    count = blend.counts(first)
    for place in range(num):
        one = blend.draws(first + place, 1)
        source = int(one.source[0])
        assert (source, one.epoch[0], one.row[0]) == (draws.source[place], draws.epoch[place], draws.row[place])
        assert one.epoch[0] == count[source] // sizes[source]
        assert draws.length[place] == np.float32((draws.row[place] + 1) / sizes[source])
        count[source] += 1
    assert np.array_equal(count, blend.counts(first + num))
    cuts = Counter(zip(draws.source.tolist(), draws.row.tolist(), strict=True))
    assert draws.repeats or max(cuts.values(), default=1) == 1


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=5), periods=st.integers(0, 1000))
def test_weights_are_honoured_exactly_and_evenly(weights: list[int], periods: int) -> None:
    blend = make_blend([1000] * len(weights), weights)
    first = periods * blend.period
    assert sum(weights) % blend.period == 0
    whole = np.array(shares(blend, first, blend.period))
    assert np.array_equal(whole * sum(weights), np.array(weights) * blend.period)
    places = [np.flatnonzero(blend.draws(first, 2 * blend.period).source == s) for s in range(len(weights))]
    for weight, place in zip(whole, places, strict=True):  # no source waits much longer than its share
        assert np.diff(place).max(initial=0) <= 2 * blend.period / weight + len(weights)


def test_every_source_is_passed_over_again_and_again_each_time_in_another_order() -> None:
    blend = make_blend([10, 30], [1, 3])
    draws = blend.draws(0, 400)
    for source, size in enumerate([10, 30]):
        rows = draws.row[draws.source == source].reshape(10, size)
        epochs = draws.epoch[draws.source == source].reshape(10, size)
        assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(size), (10, 1)))
        assert np.array_equal(epochs, np.repeat(np.arange(10)[:, None], size, axis=1))
        assert len(np.unique(rows, axis=0)) == 10


def test_seed_segment_and_source_enter_the_order() -> None:
    orders = [make_blend([500, 500], [1, 1], seed=s, segment=g).draws(0, 1000) for s in (0, 1) for g in (0, 1)]
    rows = [draws.row[draws.source == source] for draws in orders for source in (0, 1)]
    correlation = np.corrcoef(rows) - np.eye(8)
    assert np.abs(correlation).max() < 5 / 500**0.5


def test_chunks_of_one_source_tile_its_epochs() -> None:
    blend = make_blend([103], [1])
    stretches = [blend.stretch(number, most=25) for number in range(15)]
    assert [num for _, num in stretches] == [20, 21, 20, 21, 21] * 3
    assert [first for first, _ in stretches] == [sum(num for _, num in stretches[:k]) for k in range(15)]
    assert blend.stretch(5 * 10**9, most=25) == (10**9 * 103, 20)


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=2, max_size=4), most=st.integers(1, 99)
)
def test_chunks_of_a_blend_tile_the_stream_in_whole_periods(sources: list[tuple[int, int]], most: int) -> None:
    sizes, weights = zip(*sources, strict=True)
    blend = make_blend(sizes, weights)
    stretches = [blend.stretch(number, most=most) for number in range(7)]
    num = stretches[0][1]
    assert stretches == [(number * num, num) for number in range(7)]
    assert 1 <= num <= most
    assert num % blend.period == 0 or num == most < blend.period
    share = np.array(weights) / sum(weights)
    assert num <= max(np.ceil(sizes / (share * blend.period)).max(), 1) * blend.period


def test_weights_too_fine_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 1,000,004 .* round them"):
        make_blend([5, 5], [1, 1_000_003])
    assert make_blend([5, 5], [10**9, 3 * 10**9]).period == 4
