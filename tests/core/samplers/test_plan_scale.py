"""What planning costs must not depend on the position, and little on the number of rows."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import core.samplers.blend
from core.samplers.plan import Plan, PlanConfig, Position, Source

RULES = PlanConfig(micro_batches_per_step=8, max_duration_s=100.0)


def mapped_durations(path: Path, num: int) -> np.ndarray:
    """Durations on disk, memory-mapped: half a million different ones, again and again."""
    some = np.random.default_rng(0).gamma(9, 1.4, 500_000).clip(1, 35)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num,))
    for begin in range(0, num, len(some)):
        rows[begin : begin + len(some)] = some[: num - begin]
    rows.flush()
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("min_cut_s", [0.0, 5.0])
def test_ten_million_rows_cost_few_bytes_and_little_time(min_cut_s: float, tmp_path: Path) -> None:
    num = 10_000_000
    durations = mapped_durations(tmp_path / "durations.npy", num)
    config = PlanConfig(micro_batches_per_step=8, max_duration_s=100.0, min_cut_s=min_cut_s)
    tracemalloc.start()
    begin = time.process_time()
    plan = Plan([Source("a", durations)], config, seed=0)
    step = next(plan.steps(Position(0, 10**6, 3)))
    assert all(step.micro_batches)
    seconds = time.process_time() - begin
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 20 * num  # and twice as many rows do not need a larger chunk
    assert seconds < 5  # 0.1 s on the machine this was written on


def count_draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of draws of each stretch that is computed from now on."""
    computed: list[int] = []
    original = core.samplers.blend.endless_passes

    def counted(first: int, num: int, **rest: Any) -> tuple[np.ndarray, np.ndarray]:
        computed.append(num)
        return original(first, num, **rest)

    monkeypatch.setattr(core.samplers.blend, "endless_passes", counted)
    return computed


@pytest.mark.parametrize("num_sources", [1, 2])
def test_a_resume_computes_one_chunk_wherever_it_is(num_sources: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sources = [Source(f"s{n}", rng.gamma(9, 1.4, 30_000).clip(1, 35).astype(np.float32)) for n in range(num_sources)]
    config = PlanConfig(micro_batches_per_step=8, max_duration_s=100.0, chunk_draws=10_000)
    plan = Plan(sources, config, seed=0)
    computed = count_draws(monkeypatch)
    for chunk in (0, 6, 600, 10**9):  # step 100,000 is in chunk 600
        computed.clear()
        next(plan.steps(Position(0, chunk, 5)))
        assert sum(computed) == 10_000


def test_a_chunk_takes_the_same_time_wherever_it_is() -> None:
    durations = np.random.default_rng(0).gamma(9, 1.4, 200_000).clip(1, 35).astype(np.float32)
    plan = Plan([Source("a", durations)], RULES, seed=0)

    def seconds(chunk: int) -> float:
        times = []
        for _ in range(5):
            begin = time.process_time()
            plan.chunk(chunk)
            times.append(time.process_time() - begin)
        return min(times)

    early, late = seconds(1), seconds(100_001)
    assert max(early, late) < 1  # 6 ms on the machine this was written on
    assert late < 3 * early + 0.01
