"""The training plan: what must hold of its steps for any corpus, rules and number of ranks."""

import json
import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.samplers.plan import Draw, Plan, PlanConfig, PlannedStep, Position, Source, check_dp_size, rank_micro_batches

Step = list[list[Draw]]


def rules(**changes: Any) -> PlanConfig:
    return PlanConfig(**{"micro_batches_per_step": 4, "max_duration_s": 60.0, "num_buckets": 8, **changes})


def speech(num: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(6, 1.5, num).clip(1, 30).astype(np.float32)


def take(steps: Iterable[PlannedStep], num: int) -> list[tuple[Step, Position]]:
    return [(list(step.micro_batches), step.after) for step in islice(steps, num)]


def one_epoch(plan: Plan, epoch: int, *, chunks: int) -> list[Step]:
    """The steps of the chunks that make one epoch of a single source."""
    steps = []
    for step in plan.steps(Position(plan.segment, epoch * chunks, 0)):
        steps.append(list(step.micro_batches))
        if step.after.chunk == (epoch + 1) * chunks:
            return steps
    raise AssertionError


def cuts(steps: Iterable[Step]) -> list[tuple[int, int]]:
    return [(draw.source, draw.row) for step in steps for micro_batch in step for draw in micro_batch]


CORPORA = st.tuples(st.integers(1, 400), st.integers(0, 10**6)).map(lambda args: speech(args[0], seed=args[1]))
RULES = st.fixed_dictionaries(
    {
        "micro_batches_per_step": st.integers(1, 12),
        "max_duration_s": st.floats(45, 400),
        "max_cuts": st.one_of(st.none(), st.integers(1, 20)),
        "quadratic_duration_s": st.one_of(st.none(), st.floats(61, 100)),
        "num_buckets": st.integers(1, 30),
        "min_cut_s": st.floats(0, 5),
        "max_cut_s": st.one_of(st.none(), st.floats(6, 25)),
        "over_budget": st.sampled_from(["crop", "alone", "skip"]),
        "chunk_draws": st.integers(20, 500),
    }
)


@settings(max_examples=120, deadline=None)
@given(durations=CORPORA, changes=RULES, seed=st.integers(0, 2**40))
def test_every_admitted_cut_once_an_epoch_within_every_budget(
    durations: np.ndarray, changes: dict[str, Any], seed: int
) -> None:
    config = rules(**changes)
    limit = np.float32(config.allowed_s)
    is_drawn = durations >= np.float32(config.min_cut_s)
    if config.over_budget == "skip":
        is_drawn &= durations <= limit
    if not is_drawn.any():
        with pytest.raises(ValueError, match="has no cut to draw"):
            Plan([Source("a", durations)], config, seed=seed)
        return
    plan = Plan([Source("a", durations)], config, seed=seed)
    chunks = -(-int(is_drawn.sum()) // config.chunk_draws)
    for epoch in (0, 1):
        steps = one_epoch(plan, epoch, chunks=chunks)
        assert sorted(cuts(steps)) == [(0, row) for row in np.flatnonzero(is_drawn).tolist()]
        for step in steps:
            assert len(step) == config.micro_batches_per_step
            assert any(step)
            for micro_batch in filter(None, step):
                assert {draw.epoch for draw in micro_batch} == {epoch}
                lengths = [float(durations[draw.row]) for draw in micro_batch]
                if config.over_budget == "alone" and max(lengths) > limit:
                    assert len(micro_batch) == 1
                    continue
                longest = min(max(lengths), float(limit))
                cost = longest + (longest**2 / config.quadratic_duration_s if config.quadratic_duration_s else 0)
                assert cost * len(micro_batch) <= config.max_duration_s * (1 + 2e-6)
                assert len(micro_batch) <= (config.max_cuts or np.inf)
    assert plan.statistics.num_too_short["a"] == int((durations < np.float32(config.min_cut_s)).sum())
    assert plan.statistics.num_over_budget["a"] == int((durations > limit).sum())


@settings(max_examples=25, deadline=None)
@given(durations=CORPORA, changes=RULES, seed=st.integers(0, 99))
def test_resume_from_every_position_equals_the_tail(durations: np.ndarray, changes: dict[str, Any], seed: int) -> None:
    sources = [Source("a", durations + 6, 2), Source("b", speech(30) + 6, 1)]
    uninterrupted = take(Plan(sources, rules(**changes | {"max_cut_s": None}), seed=seed).steps(), 12)
    for done, (_, after) in enumerate(uninterrupted, start=1):
        position = Position(**json.loads(json.dumps(after._asdict())))
        assert position == Position(*json.loads(json.dumps(after)))
        fresh = Plan(sources, rules(**changes | {"max_cut_s": None}), seed=seed)
        assert take(fresh.steps(position), 12 - done) == uninterrupted[done:]


def test_the_ranks_together_take_the_same_step_whatever_their_number() -> None:
    plan = Plan([Source("a", speech(500))], rules(micro_batches_per_step=8), seed=3)
    for step in islice(plan.steps(), 20):
        whole = list(step.micro_batches)
        for dp_size in (1, 2, 4, 8):
            shares = [rank_micro_batches(step, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)]
            assert {len(share) for share in shares} == {8 // dp_size}
            assert [shares[number % dp_size][number // dp_size] for number in range(8)] == whole


@pytest.mark.parametrize("dp_size, per_step, use", [(5, 12, "1, 2, 3, 4, 6 or 12"), (2, 1, "1"), (0, 2, "1 or 2")])
def test_a_dp_size_that_does_not_divide_is_refused(dp_size: int, per_step: int, use: str) -> None:
    expected = f"^dp size {dp_size} must divide plan.micro_batches_per_step={per_step}; use {use}$"
    with pytest.raises(ValueError, match=expected):
        check_dp_size(dp_size, micro_batches_per_step=per_step)
    plan = Plan([Source("a", speech(50))], rules(micro_batches_per_step=per_step), seed=3)
    with pytest.raises(ValueError, match=expected):
        rank_micro_batches(next(plan.steps()), dp_rank=0, dp_size=dp_size)


@pytest.mark.parametrize(("dp_size", "alike", "use"), [
    (2, 1, "use 1, or set plan.alike_micro_batches to 2, 4, 6 or 12"),
    (4, 6, "use 1, 2, 3 or 6, or set plan.alike_micro_batches to 4 or 12"),
])  # fmt: skip
def test_what_ranks_take_at_the_same_time_must_be_alike(dp_size: int, alike: int, use: str) -> None:
    check_dp_size(dp_size, micro_batches_per_step=12, alike=dp_size)
    with pytest.raises(ValueError, match=f"^dp size {dp_size} must divide plan.alike_micro_batches={alike}, .* {use}$"):
        check_dp_size(dp_size, micro_batches_per_step=12, alike=alike)
    with pytest.raises(ValueError, match="=5 must divide micro_batches_per_step=12; use 1, 2, 3, 4, 6 or 12"):
        rules(micro_batches_per_step=12, alike_micro_batches=5)


@settings(max_examples=40, deadline=None)
@given(durations=CORPORA, alike=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 99))
def test_alike_micro_batches_stay_together_and_others_mix(durations: np.ndarray, alike: int, seed: int) -> None:
    """The same micro-batches as ever make the steps, in groups of `alike` that no step parts."""
    config = rules(micro_batches_per_step=12, alike_micro_batches=alike)
    plans = [Plan([Source("a", durations)], one, seed=seed) for one in (config, rules(micro_batches_per_step=12))]
    mixed, sorted_ = ([step.micro_batches for step in islice(plan.steps(), plan.chunk(0).num_steps)] for plan in plans)

    def groups(steps: list[Any], size: int) -> Counter[tuple[Any, ...]]:
        flat = [tuple(batch) for step in steps for batch in step]
        return Counter(tuple(sorted(flat[n : n + size])) for n in range(0, len(flat), size))

    assert groups(mixed, 1) == groups(sorted_, 1)
    if alike == 12:
        assert [list(step) for step in mixed] == [list(step) for step in sorted_]
    padded = [[len(b) * durations[[d.row for d in b]].max(initial=0) for b in step] for step in mixed]
    of_groups = np.array(padded).reshape(-1, alike)
    of_groups = of_groups[np.argsort(of_groups.mean(axis=1), kind="stable")]
    assert (of_groups[:-1].max(axis=1) <= of_groups[1:].min(axis=1) + 60 / 200 + 1e-3).all(), "alike in cost"


def test_the_plan_is_a_function_of_seed_and_segment() -> None:
    def first_steps(seed: int, segment: int) -> list[Step]:
        plan = Plan([Source("a", speech(300))], rules(), seed=seed, segment=segment)
        return [step for step, _ in take(plan.steps(), 10)]

    assert first_steps(1, 0) == first_steps(1, 0)
    others = [first_steps(1, 0), first_steps(2, 0), first_steps(1, 1), first_steps(2, 1)]
    for number, steps in enumerate(others):
        assert all(steps != other for other in others[:number])


@pytest.mark.parametrize("num_cuts", [120, 5000])
def test_epochs_reshuffle_the_composition_of_batches(num_cuts: int) -> None:
    """Which cuts share a micro-batch is new in every epoch, in a small corpus too."""
    plan = Plan([Source("a", speech(num_cuts))], rules(num_buckets=30), seed=0)
    pairs = []
    for epoch in range(3):
        batches = [sorted(draw.row for draw in batch) for step in one_epoch(plan, epoch, chunks=1) for batch in step]
        pairs.append({(a, b) for batch in batches for a in batch for b in batch if a < b})
    for first, second in [(0, 1), (1, 2), (0, 2)]:
        assert len(pairs[first] & pairs[second]) < 0.5 * len(pairs[first])


def test_chunks_reshuffle_the_composition_of_batches_where_cuts_repeat() -> None:
    plan = Plan([Source("a", speech(60)), Source("b", speech(200, seed=1))], rules(), seed=0)
    pairs = []
    for number in range(3):
        chunk = plan.chunk(number)
        assert chunk.draws.repeats
        batches = [[(d.source, d.row) for d in chunk.micro_batch(batch)] for batch in range(len(chunk.sizes))]
        pairs.append({(a, b) for batch in batches for a in batch for b in batch if a < b})
    assert len(pairs[0] & pairs[1] | pairs[1] & pairs[2]) < 0.5 * len(pairs[1])


def test_steps_come_in_no_order_of_length() -> None:
    durations = speech(4000)
    plan = Plan([Source("a", durations)], rules(), seed=0)
    longest = [durations[[d.row for batch in s for d in batch]].max() for s in one_epoch(plan, 0, chunks=1)]
    places = np.arange(len(longest))
    assert abs(np.corrcoef(places, longest)[0, 1]) < 4 / len(longest) ** 0.5


def test_no_rank_gets_the_longer_micro_batches_of_the_steps() -> None:
    durations = speech(600)
    plan = Plan([Source("a", durations)], rules(micro_batches_per_step=16), seed=0)
    places = []  # in order of padded length, of the micro-batches of each step
    for epoch in range(50):
        for step in one_epoch(plan, epoch, chunks=1):
            places.append(np.argsort([len(b) * durations[[d.row for d in b]].max(initial=0) for b in step]))
    mean_place = np.mean(places, axis=0)  # 7.5 with a standard deviation of 4.6 / sqrt(steps)
    assert np.abs(mean_place - 7.5).max() < 4 * 4.61 / len(places) ** 0.5


@pytest.mark.parametrize("per_step", [4, 64])
def test_micro_batches_of_a_step_are_alike_and_pad_little(per_step: int) -> None:
    durations = speech(40_000)
    config = rules(num_buckets=30, max_duration_s=100.0, micro_batches_per_step=per_step)
    lengths = [
        [durations[[d.row for d in b]] for b in step]
        for step in one_epoch(Plan([Source("a", durations)], config, seed=0), 0, chunks=1)
    ]
    padded = np.array([[len(b) * b.max() for b in step] for step in lengths])
    assert durations.sum(dtype=float) / padded.sum() > 0.97
    assert (padded.max(axis=1) / padded.mean(axis=1)).mean() < 1.01
    assert padded.max() <= 100 * (1 + 2e-6)
    assert padded.mean() > 0.9 * 100
    longest = np.array([[b.max() for b in step] for step in lengths])
    assert per_step > 4 or np.median(longest.max(axis=1) / longest.min(axis=1)) < 1.25


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 6)), min_size=2, max_size=4),
    chunk_draws=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_no_cut_twice_in_a_micro_batch_of_a_blend(sizes: list[tuple[int, int]], chunk_draws: int, seed: int) -> None:
    """Small sources with large weights go round several times within one chunk."""
    sources = [Source(f"s{n}", speech(size, seed=n), weight) for n, (size, weight) in enumerate(sizes)]
    plan = Plan(sources, rules(chunk_draws=chunk_draws), seed=seed)
    steps = take(plan.steps(), 30)
    for step, _ in steps:
        for micro_batch in step:
            assert len({(draw.source, draw.row) for draw in micro_batch}) == len(micro_batch)
    assert len(set(draw for step, _ in steps for batch in step for draw in batch)) == len(cuts(s for s, _ in steps))


def test_a_blend_honours_its_weights_exactly_in_every_chunk() -> None:
    sources = [Source("a", speech(900), 5), Source("b", speech(40, seed=1), 2), Source("c", speech(300, seed=2), 1)]
    plan = Plan(sources, rules(chunk_draws=403), seed=0)
    drawn: Counter[tuple[int, int]] = Counter()
    per_source: Counter[int] = Counter()
    chunk = 0
    for step in plan.steps():
        drawn.update(cuts([list(step.micro_batches)]))
        if step.after.chunk != chunk:
            chunk += 1
            per_source = Counter()
            for (source, _), count in drawn.items():
                per_source[source] += count
            assert per_source == {0: chunk * 250, 1: chunk * 100, 2: chunk * 50}
        if chunk == 9:  # 2,250 = 2.5 epochs of a, 900 = 22.5 epochs of b, 450 = 1.5 epochs of c
            break
    for source, low, high in [(0, 2, 3), (1, 22, 23), (2, 1, 2)]:
        counts = {count for (s, _), count in drawn.items() if s == source}
        assert counts == {low, high}


def test_fewer_cuts_than_micro_batches() -> None:
    plan = Plan([Source("a", speech(3))], rules(micro_batches_per_step=8), seed=0)
    for step, _ in take(plan.steps(), 3):
        assert sorted(map(len, step)) == [0, 0, 0, 0, 0, 1, 1, 1]
        assert sorted(cuts([step])) == [(0, 0), (0, 1), (0, 2)]


def test_all_cuts_over_budget_and_alone() -> None:
    durations = np.array([70, 80, 90, 61, 500], np.float32)
    plan = Plan([Source("a", durations)], rules(over_budget="alone"), seed=0)
    steps = one_epoch(plan, 0, chunks=1)
    assert [len(batch) for step in steps for batch in step].count(1) == 5
    assert sorted(cuts(steps)) == [(0, row) for row in range(5)]


def test_the_reader_is_told_where_to_crop() -> None:
    sources = [Source("a", speech(50))]
    assert Plan(sources, rules(max_cut_s=15.6, over_budget="crop"), seed=0).crop_length == 15.6
    assert Plan(sources, rules(over_budget="crop"), seed=0).crop_length == 60
    assert Plan(sources, rules(), seed=0).crop_length is None


def test_positions_of_another_segment_or_plan_are_refused() -> None:
    plan = Plan([Source("a", speech(50))], rules(), seed=0, segment=1)
    assert next(plan.steps()).after.segment == 1
    with pytest.raises(ValueError, match=r"in segment 0 .* is segment 1: .*run\.accept_data=true.*chunk=0"):
        plan.steps(Position(0, 0, 0))
    with pytest.raises(ValueError, match="behind the 3 steps of its chunk: the data or the rules"):
        plan.steps(Position(1, 0, 4))
    for position in (Position(1, -1, 0), Position(1, 0, -1)):
        with pytest.raises(ValueError, match="is no position"):
            plan.steps(position)
    end_of_chunk = take(plan.steps(Position(1, 0, plan.chunk(0).num_steps)), 5)
    assert end_of_chunk == take(plan.steps(Position(1, 1, 0)), 5)


def test_sources_that_cannot_be_planned_are_refused() -> None:
    durations = speech(50)
    for sources, message in [
        ([], "at least one source"),
        ([Source("a", durations), Source("a", durations)], "source 'a' occurs 2 times"),
        ([Source("a", durations, 0)], "source 'a': weight=0 must be an integer of at least 1"),
        ([Source("a", durations, 1.5)], "weight=1.5 must be an integer"),  # type: ignore[arg-type]
        ([Source("a", durations), Source("b", durations[:0])], "source 'b' has no rows"),
        ([Source("a", durations * 10)], "source 'a' row .* is over budget"),
    ]:
        with pytest.raises(ValueError, match=message):
            Plan(sources, rules(), seed=0)


def test_fingerprint_changes_with_the_blend_only() -> None:
    durations = speech(50)
    base = Plan([Source("a", durations)], rules(), seed=0).fingerprint
    assert Plan([Source("a", durations.copy())], rules(num_buckets=3), seed=1).fingerprint == base
    changed = durations.copy()
    changed[7] += 0.5
    others = [
        [Source("b", durations)],
        [Source("a", durations, 2)],
        [Source("a", changed)],
        [Source("a", durations[1:])],
    ]
    others.append([Source("a", durations), Source("b", durations)])
    prints = {Plan(sources, rules(), seed=0).fingerprint for sources in others}
    assert len(prints | {base}) == len(others) + 1


def test_micro_batches_travel_to_another_process_as_plain_lists() -> None:
    step = next(Plan([Source("a", speech(5000))], rules(), seed=0).steps())
    sent = pickle.dumps(step)
    assert len(sent) < 10_000
    assert pickle.loads(sent).micro_batches == list(step.micro_batches)
    assert step.micro_batches[-1] == list(step.micro_batches)[3]
    with pytest.raises(IndexError):
        step.micro_batches[4]
