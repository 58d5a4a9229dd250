"""Micro-batches of one size: always exactly so many different cuts, and none is drawn more often than another."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.samplers.blend import Draws
from core.samplers.plan import Draw, Plan, PlanConfig, Position, Source


def rules(size: int, *, per_step: int = 2, chunk_draws: int = 100_000, num_buckets: int = 5) -> PlanConfig:
    return PlanConfig(
        micro_batches_per_step=per_step, max_duration_s=3.0 * size, max_cuts=size, constant_cuts=True, max_cut_s=3.0,
        over_budget="crop", num_buckets=num_buckets, chunk_draws=chunk_draws,
    )  # fmt: skip


def speech(num: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2, 1.5, num).clip(0.3, 15).astype(np.float32)


def micro_batches(plan: Plan, num_steps: int) -> list[list[Draw]]:
    return [batch for step in islice(plan.steps(), num_steps) for batch in step.micro_batches]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(12, 300), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 10),
    st.integers(1, 4),
    st.integers(30, 500),
)
def test_every_micro_batch_has_exactly_so_many_different_cuts(
    sources: list[tuple[int, int]], size: int, per_step: int, chunk_draws: int
) -> None:
    named = [Source(str(n), speech(num, seed=n), weight) for n, (num, weight) in enumerate(sources)]
    plan = Plan(named, rules(size, per_step=per_step, chunk_draws=chunk_draws), seed=3)
    for batch in micro_batches(plan, 60):
        assert len(batch) == size
        assert len({(draw.source, draw.row) for draw in batch}) == size, "no cut twice in one micro-batch"


def test_no_cut_is_drawn_more_often_than_another() -> None:
    plan = Plan([Source("a", speech(101))], rules(8), seed=1)
    chunk = plan.chunk(0)
    drawn = [draw for batch in micro_batches(plan, 10 * chunk.num_steps) for draw in batch]
    counts = Counter(draw.row for draw in drawn)
    assert len(counts) == 101 and max(counts.values()) - min(counts.values()) <= 1
    assert len(set(drawn)) == len(drawn), "each cut once in each epoch"
    assert chunk.sizes.sum() == 96 and chunk.num_steps == 6, "about one pass, whole steps"


def test_batches_are_alike_in_length_and_shuffled() -> None:
    durations = speech(5000)
    counted = np.minimum(durations, 3.0)
    plan = Plan([Source("a", durations)], rules(16, num_buckets=10), seed=1)
    longest = []
    padded = audio = 0.0
    for batch in micro_batches(plan, 100):
        seconds = counted[[draw.row for draw in batch]]
        longest.append(float(seconds.max()))
        audio, padded = audio + float(seconds.sum()), padded + 16 * longest[-1]
    assert audio / padded > 0.93
    assert abs(np.corrcoef(longest[::2][:-1], longest[::2][1:])[0, 1]) < 0.3, "one step tells nothing of the next"


def test_a_resume_is_exact() -> None:
    plan = Plan([Source("a", speech(50)), Source("b", speech(30), 2)], rules(4, chunk_draws=40), seed=1)
    steps = list(islice(plan.steps(), 30))
    for start in (0, 7, 29):
        again = next(plan.steps(steps[start - 1].after if start else Position(0, 0, 0)))
        assert list(again.micro_batches) == list(steps[start].micro_batches)


def test_lengths_that_are_drawn_decide_the_buckets() -> None:
    """What is read of a cut is a random part of it: the batches are of parts that are alike."""

    def lengths(draws: Draws, *, segment: int) -> np.ndarray:
        return np.minimum(1 + ((draws.row * 7 + draws.epoch * 3 + segment) % 20) / 10, draws.length).astype("f4")

    plan = Plan([Source("a", np.full(2000, 9.0, np.float32))], rules(20, num_buckets=20), seed=1, lengths=lengths)
    spread = []
    for batch in micro_batches(plan.in_segment(0), 40):
        parts = [1 + ((draw.row * 7 + draw.epoch * 3) % 20) / 10 for draw in batch]
        spread.append(max(parts) - min(parts))
    assert np.mean(spread) < 0.2
    assert plan.statistics.padding_share < 0.06
    other = plan.in_segment(1)
    assert next(iter(other.steps())).micro_batches[0] != next(iter(plan.steps())).micro_batches[0]


def test_a_corpus_that_is_one_micro_batch() -> None:
    plan = Plan([Source("a", speech(10))], rules(10, per_step=2), seed=1)
    assert all(len({draw.row for draw in batch}) == 10 for batch in micro_batches(plan, 5))


def test_what_cannot_be_constant_is_refused() -> None:
    with pytest.raises(ValueError, match=r"source 'a' has 9 cuts, and each micro-batch takes 10 different ones"):
        Plan([Source("a", speech(9))], rules(10), seed=1)
    with pytest.raises(ValueError, match=r"takes 7\.5 different ones"):
        Plan([Source("a", speech(7), 3), Source("b", speech(90), 1)], rules(10), seed=1)
    options = {"micro_batches_per_step": 1, "constant_cuts": True}
    with pytest.raises(ValueError, match="constant_cuts=true needs max_cuts"):
        PlanConfig(max_duration_s=9.0, **options)
    with pytest.raises(ValueError, match="over_budget=alone"):
        PlanConfig(max_duration_s=9.0, max_cuts=3, over_budget="alone", **options)
    with pytest.raises(ValueError, match=r"max_duration_s=9 must hold max_cuts=4 cuts of 3 s .*raise it to 12"):
        PlanConfig(max_duration_s=9.0, max_cuts=4, max_cut_s=3.0, **options)
