from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.samplers.admission import Source
from core.samplers.blend import Draw
from core.samplers.evaluation import EvaluationPlan
from core.samplers.settings import PlanConfig


def rules(**changes: Any) -> PlanConfig:
    return PlanConfig(**{"micro_batches_per_step": 4, "max_duration_s": 60.0, **changes})


def packed_by_hand(durations: list[float], *, max_duration_s: float, max_cuts: int | None) -> list[list[int]]:
    """Longest first, each cut into the open batch while its padded length stays within the budget."""
    batches: list[list[int]] = []
    for row in sorted(range(len(durations)), key=lambda row: -durations[row]):
        longest = durations[batches[-1][0]] if batches else 0.0
        size = len(batches[-1]) + 1 if batches else 0
        if batches and size * longest <= max_duration_s * (1 + 1e-6) and size <= (max_cuts or size):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@settings(max_examples=80, deadline=None)
@given(
    durations=st.lists(st.floats(0.125, 100, width=32), min_size=1, max_size=150),
    max_cuts=st.one_of(st.none(), st.integers(1, 20)),
    dp_size=st.integers(1, 7),
)
def test_every_cut_once_in_the_same_batches_on_any_number_of_ranks(
    durations: list[float], max_cuts: int | None, dp_size: int
) -> None:
    config = rules(
        max_cuts=max_cuts, min_cut_s=3.0, max_cut_s=20.0, over_budget="skip"
    )  # filters are not for evaluation
    plan = EvaluationPlan([Source("dev", np.array(durations, np.float32))], config)
    expected = packed_by_hand(durations, max_duration_s=60.0, max_cuts=max_cuts)
    shares = [plan.batches(rank, dp_size) for rank in range(dp_size)]
    assert len({len(share) for share in shares}) == 1
    dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert dealt[: len(expected)] == [[Draw(0, 0, row) for row in rows] for rows in expected]
    assert len(dealt) - len(expected) < dp_size
    assert not any(dealt[len(expected) :])


def test_quadratic_budget_holds() -> None:
    durations = np.full(40, 10, np.float32)
    batches = EvaluationPlan([Source("dev", durations)], rules(quadratic_duration_s=10.0)).batches(0, 1)
    assert [len(batch) for batch in batches] == [3] * 13 + [1]  # 3 x (10 + 10) s


def test_an_impossible_source_is_refused() -> None:
    with pytest.raises(ValueError, match="'dev' has no rows"):
        EvaluationPlan([Source("dev", np.zeros(0, np.float32))], rules())
    with pytest.raises(ValueError, match="'dev' row 1: a duration must be positive"):
        EvaluationPlan([Source("dev", np.array([1, np.nan], np.float32))], rules())


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), dp_size=st.integers(1, 5))
def test_several_sources_are_evaluated_together_whatever_their_weights(sizes: list[int], dp_size: int) -> None:
    rng = np.random.default_rng(sum(sizes))
    sources = [Source(str(n), rng.uniform(1, 30, size).astype(np.float32), n + 1) for n, size in enumerate(sizes)]
    plan = EvaluationPlan(sources, rules())
    batches = [batch for rank in range(dp_size) for batch in plan.batches(rank, dp_size)]
    assert sorted(draw for batch in batches for draw in batch) == [
        Draw(source, 0, row) for source, size in enumerate(sizes) for row in range(size)
    ]
    together = EvaluationPlan([Source("all", np.concatenate([source.lengths for source in sources]))], rules())
    first_rows = np.cumsum([0, *sizes])
    flat = [[Draw(0, 0, int(first_rows[one.source]) + one.row) for one in batch] for batch in plan.batches(0, 1)]
    assert flat == together.batches(0, 1), "as one source of all of them"
