"""What choosing the cuts of a step costs a rank, and what a resume costs: lhotse's dynamic bucketing and our plan.

    python -m tests.bench.sampler [--rounds 3]

Prints markdown. Both sample the same synthetic LibriSpeech-like lengths, 100 s of padded audio a micro-batch, one
micro-batch a rank; CPU time of rank 0 in this process, interleaved. Ours counts whole chunks, planning included.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import islice

import numpy as np
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler

from core.samplers.plan import Plan, PlanConfig, Position, Source, rank_micro_batches
from tests.bench.batching import MAX_DURATION_S, NUM_BUCKETS, as_cuts, librispeech_like_lengths

NUM_LHOTSE_CUTS = 60_000  # its cost for a step does not depend on their number


def make_plan(lengths: np.ndarray, *, num_ranks: int) -> Plan:
    config = PlanConfig(micro_batches_per_step=num_ranks, max_duration_s=MAX_DURATION_S, num_buckets=NUM_BUCKETS)
    return Plan([Source("synthetic", lengths)], config, seed=0)


def make_lhotse(cuts: CutSet, *, num_ranks: int) -> DynamicBucketingSampler:
    return DynamicBucketingSampler(
        cuts, max_duration=MAX_DURATION_S, num_buckets=NUM_BUCKETS, shuffle=True, world_size=num_ranks, rank=0, seed=0
    )


def cpu_ms(run: Callable[[], int]) -> float:
    """CPU milliseconds of one of the steps that `run` takes."""
    begin = time.process_time()
    num_steps = run()
    return (time.process_time() - begin) / num_steps * 1000


def plan_chunk(plan: Plan, number: int, *, num_ranks: int) -> int:
    """All steps of one chunk as rank 0 takes them; returns their number."""
    for num_steps, step in enumerate(plan.steps(Position(0, number, 0)), start=1):
        rank_micro_batches(step, dp_rank=0, dp_size=num_ranks)
        if step.after.chunk > number:
            return num_steps
    raise AssertionError


def cost_of_a_step(lengths: np.ndarray, cuts: CutSet, *, rounds: int) -> None:
    print("\n## CPU time of a step, one micro-batch a rank\n")
    print("| ranks | lhotse, ms | plan, ms | lhotse / plan: median (min to max) |\n|---|---|---|---|")
    for num_ranks, num_lhotse_steps in [(1, 400), (8, 100), (64, 20), (256, 6), (1024, 0)]:
        plan = make_plan(lengths, num_ranks=num_ranks)
        plan_chunk(plan, 0, num_ranks=num_ranks)
        ours, theirs = [], []
        for number in range(rounds):
            # 93,747 draws a chunk; several where a chunk has few steps, so that the clock can measure them
            chunks = range(number * 8, number * 8 + 8) if num_ranks >= 64 else range(number, number + 1)
            ours.append(cpu_ms(lambda: sum(plan_chunk(plan, chunk, num_ranks=num_ranks) for chunk in chunks)))  # noqa: B023
            if num_lhotse_steps:
                batches = iter(make_lhotse(cuts, num_ranks=num_ranks))
                next(batches)  # fills its buffer
                theirs.append(cpu_ms(lambda: sum(1 for _ in islice(batches, num_lhotse_steps))))  # noqa: B023
        line = f"| {num_ranks:,} | "
        if theirs:
            ratios = sorted(their / our for their, our in zip(theirs, ours, strict=True))
            line += f"{statistics.median(theirs):.3g} | {statistics.median(ours):.3g} | "
            line += f"{statistics.median(ratios):,.0f} ({ratios[0]:,.0f} to {ratios[-1]:,.0f}) |"
        else:
            line += f"not measured | {statistics.median(ours):.3g} (min {min(ours):.3g}, max {max(ours):.3g}) | |"
        print(line, flush=True)


def cost_of_a_resume(lengths: np.ndarray, cuts: CutSet, *, rounds: int) -> None:
    num_ranks = 8
    plan = make_plan(lengths, num_ranks=num_ranks)
    print(f"\n## CPU time of a resume, {num_ranks} ranks: from nothing to the first step\n")
    print("| at step | plan, s | lhotse, s |\n|---|---|---|")
    lhotse_s = {steps: resume_lhotse(cuts, num_ranks=num_ranks, num_steps=steps) for steps in (200, 800)}
    slope = (lhotse_s[800] - lhotse_s[200]) / 600
    for num_steps in (200, 800, 1_000, 10_000, 100_000):
        position = position_of(plan, num_steps)
        times = []
        for _ in range(rounds):
            begin = time.process_time()
            next(make_plan(lengths, num_ranks=num_ranks).steps(position))
            times.append(time.process_time() - begin)
        measured = num_steps in lhotse_s
        theirs = lhotse_s[num_steps] if measured else lhotse_s[200] + slope * (num_steps - 200)
        note = "" if measured else " (extrapolated: it takes every step again)"
        print(f"| {num_steps:,} | {statistics.median(times):.3f} | {theirs:,.2f}{note} |", flush=True)


def position_of(plan: Plan, num_steps: int) -> Position:
    """The position after so many steps from the beginning of the run."""
    chunk = 0
    while num_steps >= (in_chunk := plan.chunk(chunk).num_steps):
        num_steps -= in_chunk
        chunk += 1
    return Position(0, chunk, num_steps)


def resume_lhotse(cuts: CutSet, *, num_ranks: int, num_steps: int) -> float:
    sampler = make_lhotse(cuts, num_ranks=num_ranks)
    for _ in islice(sampler, num_steps):
        pass
    state = sampler.state_dict()
    begin = time.process_time()
    resumed = make_lhotse(cuts, num_ranks=num_ranks)
    resumed.load_state_dict(state)
    next(iter(resumed))
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore", message="You are using Dynamic")
    lengths = librispeech_like_lengths(281_241)
    cuts = as_cuts(lengths[:NUM_LHOTSE_CUTS])
    print("# The sampler")
    cost_of_a_step(lengths, cuts, rounds=rounds)
    cost_of_a_resume(lengths, cuts, rounds=rounds)


if __name__ == "__main__":
    main()
