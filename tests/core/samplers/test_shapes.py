"""Static shapes: all micro-batches of an epoch have one of a few sizes, within the budget, and no cut is lost."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.config.load import load
from core.samplers.plan import Draw, EvaluationPlan, Plan, Position, Source, rank_micro_batches
from core.samplers.settings import ShapedPlanConfig
from recipes.hubert_iter1.assembly import Config

CONFIG = Path(__file__).parents[3] / "recipes" / "hubert_iter1" / "config.yaml"
PAGE = CONFIG.with_name("README.md")


def rules(**changes: Any) -> ShapedPlanConfig:
    usual = {"micro_batches_per_step": 4, "max_duration_s": 60.0, "num_buckets": 8, "over_budget": "crop"}
    return ShapedPlanConfig(**{**usual, "static_shapes": True, **changes})


def like_librispeech(num: int, *, seed: int) -> np.ndarray:
    """Most clips of 12 to 17 s, the others shorter, some too short, some far too long; 12.5 s on average."""
    rng = np.random.default_rng(seed)
    durations = np.where(rng.random(num) < 0.72, rng.normal(14.5, 1.2, num), rng.uniform(1.4, 13.5, num))
    return np.append(durations[1:].clip(1.4, 24.5), 34.9).astype(np.float32)


def shape(lengths_s: np.ndarray, config: ShapedPlanConfig) -> tuple[int, float]:
    """(rows, seconds) by the rule in words: the first class that is long enough, and all the rows that fit in."""
    longest_s = min(float(lengths_s.max()), config.allowed_s)
    width_s = (config.allowed_s - config.min_cut_s) / config.num_buckets
    ends_s = [config.min_cut_s + width_s * (number + 1) for number in range(config.num_buckets)]
    row_length = next((end for end in ends_s if longest_s <= end * (1 + 1e-6)), ends_s[-1])
    cost_s = row_length + (row_length**2 / config.quadratic_duration_s if config.quadratic_duration_s else 0)
    fit = max(1, int(config.max_duration_s * (1 + 1e-6) / cost_s))
    return min(fit, config.max_cuts or fit), round(row_length, 6)


def epoch(plan: Plan, *, chunks: int, dp_size: int) -> list[list[Draw]]:
    """The micro-batches of one epoch as `dp_size` ranks get them."""
    shares: list[list[list[Draw]]] = [[] for _ in range(dp_size)]
    for step in plan.steps(Position(0, 0, 0)):
        for rank, share in enumerate(shares):
            share += rank_micro_batches(step, dp_rank=rank, dp_size=dp_size)
        if step.after.chunk == chunks:
            return [draws for share in shares for draws in share]
    raise AssertionError


@pytest.mark.parametrize("dp_size", [1, 8])
def test_an_epoch_of_librispeech_has_as_many_shapes_as_buckets(dp_size: int) -> None:
    config = load(Config, CONFIG).plan
    assert config.static_shapes
    durations = like_librispeech(281_241, seed=1)
    plan = Plan([Source("train", durations)], config, seed=1337)
    found, rows = set(), []
    for draws in epoch(plan, chunks=3, dp_size=dp_size):
        own = [draw.row for draw in draws]
        num_rows, row_length = shape(durations[own], config)
        assert len(own) <= num_rows and num_rows * row_length <= config.max_duration_s * (1 + 1e-6)
        found.add((num_rows, row_length))
        rows += own
    assert len(found) <= config.num_buckets and max(row_length for _, row_length in found) == config.max_cut_s
    assert sorted(rows) == np.flatnonzero(durations >= np.float32(config.min_cut_s)).tolist()
    assert plan.statistics.padding_share < 0.035 and plan.statistics.empty_share == 0
    chunks = [plan.chunk(number) for number in range(3)]
    assert {pair for chunk in chunks for pair in zip(chunk.num_rows, chunk.row_length.round(6), strict=True)} == found


@pytest.mark.parametrize(("changes", "audio_s", "padding"), [
    ({"num_buckets": 8}, 2431, 0.055), ({}, 2446, 0.029), ({"num_buckets": 30}, 2499, 0.017),
    ({"static_shapes": False, "num_buckets": 30}, 2520, 0.0095),
    ({"micro_batches_per_step": 64, "max_duration_s": 46.875}, 2714, 0.030),
    ({"micro_batches_per_step": 64, "max_duration_s": 43.75}, 2098, 0.029),
])  # fmt: skip
def test_the_audio_in_an_update_is_what_the_recipes_page_says(
    changes: dict[str, Any], audio_s: float, padding: float
) -> None:
    """32 x 87.5 s = 2,800 s are a limit that whole clips do not fill."""
    config = replace(load(Config, CONFIG).plan, **changes)
    found = Plan([Source("train", like_librispeech(281_241, seed=1))], config, seed=1337).statistics
    assert found.length_per_step == pytest.approx(audio_s, abs=1)
    assert found.padding_share == pytest.approx(padding, abs=6e-4)
    assert f"{audio_s:,} s" in PAGE.read_text(encoding="utf-8")


RULES = st.fixed_dictionaries(
    {
        "micro_batches_per_step": st.integers(1, 12),
        "max_duration_s": st.floats(45, 400),
        "max_cuts": st.one_of(st.none(), st.integers(1, 20)),
        "quadratic_duration_s": st.one_of(st.none(), st.floats(61, 100)),
        "num_buckets": st.integers(1, 30),
        "min_cut_s": st.floats(0, 5),
        "max_cut_s": st.floats(6, 25),
        "over_budget": st.sampled_from(["crop", "skip"]),
        "chunk_draws": st.integers(20, 500),
    }
)


@settings(max_examples=80, deadline=None)
@given(num=st.integers(20, 400), changes=RULES, seed=st.integers(0, 10**6))
def test_any_corpus_fills_no_more_than_its_shapes(num: int, changes: dict[str, Any], seed: int) -> None:
    config = rules(**changes)
    durations = like_librispeech(num, seed=seed)
    is_drawn = durations >= np.float32(config.min_cut_s)
    if config.over_budget == "skip":
        is_drawn &= durations <= np.float32(config.allowed_s)
    assume(is_drawn.any())
    assert config.shapes is not None
    allowed = list(zip(config.shapes.num_rows.tolist(), config.shapes.upper.round(6).tolist(), strict=True))
    plan = Plan([Source("train", durations)], config, seed=seed)
    rows = []
    for draws in epoch(plan, chunks=-(-int(is_drawn.sum()) // config.chunk_draws), dp_size=1):
        own = [draw.row for draw in draws]
        rows += own
        if own:
            found = shape(durations[own], config)
            assert found in allowed and len(own) <= found[0]
    assert sorted(rows) == np.flatnonzero(is_drawn).tolist()


def test_a_resume_is_the_tail() -> None:
    plan = Plan([Source("train", like_librispeech(300, seed=2))], rules(chunk_draws=120), seed=4)
    steps = list(islice(plan.steps(), 30))
    assert steps[-1].after.chunk >= 2
    for done, step in enumerate(steps, start=1):
        fresh = Plan([Source("train", like_librispeech(300, seed=2))], rules(chunk_draws=120), seed=4)
        tail = [list(one.micro_batches) for one in islice(fresh.steps(step.after), 30 - done)]
        assert tail == [list(one.micro_batches) for one in steps[done:]]


def test_an_evaluation_has_the_same_shapes() -> None:
    config = rules(min_cut_s=2.0, max_cut_s=15.625, max_duration_s=87.5)
    durations = like_librispeech(500, seed=3)
    batches = EvaluationPlan([Source("dev", durations)], config).batches(0, 1)
    for draws in batches:
        own = [draw.row for draw in draws]
        assert len(own) <= shape(durations[own], config)[0] or len(own) == 1
    assert sorted(draw.row for draws in batches for draw in draws) == list(range(500))


def test_without_it_a_plan_is_what_it_was() -> None:
    """The first micro-batches of a plan of before there were static shapes."""
    durations = like_librispeech(300, seed=5)
    config = rules(static_shapes=False, min_cut_s=2.0, max_cut_s=15.625)
    step = next(Plan([Source("a", durations)], config, seed=7).steps())
    assert [[draw.row for draw in draws] for draws in step.micro_batches] == [
        [180, 110, 165],
        [16, 256, 201],
        [31, 190, 155],
        [199, 49, 32],
    ]


@pytest.mark.parametrize(("changes", "problem"), [
    ({"constant_cuts": True, "max_cuts": 2, "max_cut_s": 9.0}, "set constant_cuts=false"),
    ({"over_budget": "alone"}, "with static_shapes use crop or skip"),
])  # fmt: skip
def test_rules_that_contradict(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        rules(**changes)
