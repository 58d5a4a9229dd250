from itertools import islice

import numpy as np

from core.samplers.plan import Plan, PlanConfig, Source


def test_description_of_one_source_can_be_checked_by_hand() -> None:
    durations = np.array([10.0] * 160 + [0.5] * 3 + [40.0] * 2, np.float32)
    config = PlanConfig(
        micro_batches_per_step=2, max_duration_s=100.0, min_cut_s=1.0, max_cut_s=20.0, over_budget="skip"
    )
    statistics = Plan([Source("train", durations)], config, seed=0).statistics
    assert statistics.describe() == [
        "source train: 160 cuts = 0.4 h, ~8.0 steps an epoch; 3 shorter than 1 s skipped; 2 longer than 20 s skipped",
        "step = 2 micro-batches x ~100 s = ~200 s of audio in ~20 cuts; padding 0.0 %",
        "lengths = 10 +- 0 s, within a step +- 0 s",
        "chunk = 160 cuts planned together = 8 whole steps",
    ]
    assert statistics.num_too_short == {"train": 3}
    assert statistics.num_over_budget == {"train": 2}


def test_description_of_a_blend_says_shares_and_advises() -> None:
    durations = np.full(1000, 10, np.float32)
    config = PlanConfig(micro_batches_per_step=8, max_duration_s=100.0, chunk_draws=400)
    plan = Plan([Source("a", durations, 3), Source("b", durations[:50], 1)], config, seed=0)
    assert plan.statistics.describe() == [
        "source a: 1,000 cuts = 2.8 h, 3 of 4 draws, ~16.7 steps an epoch",
        "source b: 50 cuts = 0.1 h, 1 of 4 draws, ~2.5 steps an epoch",
        "step = 8 micro-batches x ~100 s = ~800 s of audio in ~80 cuts; padding 0.0 %",
        "lengths = 10 +- 0 s, within a step +- 0 s",
        "chunk = 400 cuts planned together = 5 whole steps; raise plan.chunk_draws=400 for fuller micro-batches",
    ]


def test_the_spread_of_lengths_is_that_of_the_steps() -> None:
    durations = np.random.default_rng(0).uniform(2, 20, 10_000).astype(np.float32)
    spreads = []
    for alike in (1, 2, 8):
        config = PlanConfig(micro_batches_per_step=8, max_duration_s=50.0, alike_micro_batches=alike)
        plan = Plan([Source("a", durations)], config, seed=0)
        steps = [step.micro_batches for step in islice(plan.steps(), plan.chunk(0).num_steps)]
        lengths = [durations[[draw.row for batch in step for draw in batch]].astype(float) for step in steps]
        within = np.sqrt(np.mean(np.concatenate([of_step - of_step.mean() for of_step in lengths]) ** 2))
        found = plan.statistics
        assert abs(found.spread_within_step - within) < 1e-9 and abs(found.spread - durations.std()) < 1e-5
        assert found.describe()[2] == f"lengths = 11 +- 5.2 s, within a step +- {within:.3g} s"
        spreads.append(within)
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < 2.5 < 4.5 < spreads[0]


def test_padding_and_empty_shares_are_those_of_the_steps() -> None:
    durations = np.array([4, 8, 6], np.float32)
    config = PlanConfig(micro_batches_per_step=2, max_duration_s=100.0, num_buckets=1)
    plan = Plan([Source("a", durations)], config, seed=0)
    batches = list(next(plan.steps()).micro_batches)
    padded = sum(len(batch) * max(float(durations[draw.row]) for draw in batch) for batch in batches)
    assert abs(plan.statistics.padding_share - (1 - 18 / padded)) < 1e-6
    empty = Plan([Source("a", durations)], PlanConfig(micro_batches_per_step=12, max_duration_s=100.0), seed=0)
    assert empty.statistics.empty_share == 0.75
    assert "75 % of the micro-batches are empty" in empty.statistics.describe()[1]
