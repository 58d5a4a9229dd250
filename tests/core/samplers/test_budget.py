import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse.cut import MonoCut
from lhotse.dataset.sampling.base import TimeConstraint

from core.samplers.settings import PlanConfig


def rules(**changes: Any) -> PlanConfig:
    return PlanConfig(**{"micro_batches_per_step": 4, "max_duration_s": 100.0, **changes})


@given(
    longest_s=st.floats(0.1, 60),
    max_duration_s=st.floats(60, 1000),
    quadratic_duration_s=st.one_of(st.none(), st.floats(5, 100)),
    max_cuts=st.one_of(st.none(), st.integers(1, 40)),
)
def test_capacity_is_what_lhotse_accepts(
    longest_s: float, max_duration_s: float, quadratic_duration_s: float | None, max_cuts: int | None
) -> None:
    limits = {"max_duration_s": max_duration_s, "quadratic_duration_s": quadratic_duration_s, "max_cuts": max_cuts}
    capacity = int(rules(**limits).budget.capacity(np.array([longest_s]))[0])
    cut = MonoCut("x", start=0, duration=longest_s, channel=0)

    def fits(num: int, margin: float) -> bool:
        constraint = TimeConstraint(max_duration_s * margin, max_cuts, quadratic_duration=quadratic_duration_s)
        for _ in range(num):
            constraint.add(cut)
        return not constraint.exceeded()

    assert fits(capacity, 1 + 3e-6) or capacity == 1
    assert not fits(capacity + 1, 1 - 3e-6)


def test_float32_durations_fill_the_budget_exactly() -> None:
    durations = np.array([4.8, 9.6, 16, 48], np.float32)
    assert rules(max_duration_s=48.0).budget.capacity(durations).tolist() == [10, 5, 3, 1]
    assert rules(max_duration_s=48.0, max_cuts=4).budget.capacity(durations).tolist() == [4, 4, 3, 1]
    assert rules(max_duration_s=48.0).budget.capacity(np.array([50.0, 500.0])).tolist() == [1, 1]


def test_longest_allowed_cut() -> None:
    assert rules().allowed_s == 100
    assert rules(max_cut_s=15.6).allowed_s == 15.6
    allowed = rules(quadratic_duration_s=30.0).allowed_s
    assert math.isclose(allowed + allowed**2 / 30, 100)
    assert rules(quadratic_duration_s=30.0).budget.cost(np.array([30.0])).tolist() == [60.0]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"max_cut_s": 120.0},
            "max_cut_s=120 must fit in one micro-batch: max_duration_s=100 holds a cut of at most 100",
        ),
        ({"max_cut_s": 60.0, "quadratic_duration_s": 30.0}, "holds a cut of at most 41.7"),
        ({"min_cut_s": 20.0, "max_cut_s": 10.0}, "min_cut_s=20 must be at most the longest cut allowed, 10"),
        ({"min_cut_s": 101.0}, "min_cut_s=101 must be at most"),
    ],
)
def test_contradicting_rules_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batches_per_step": 0},
        {"max_duration_s": 0.0},
        {"max_cuts": 0},
        {"num_buckets": 0},
        {"over_budget": "drop"},
        {"chunk_draws": 0},
        {"quadratic_duration_s": -1.0},
        {"max_durations_s": 3.0},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        rules(**changes)
