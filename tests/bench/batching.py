"""How much of a batch is speech, and how long ranks wait for each other: random batches, lhotse's buckets, our plan.

    python -m tests.bench.batching [--cuts 60000]

Prints markdown. Lengths are synthetic, with the shape of LibriSpeech's 960 hours (281,241 cuts, mean 12.3 s).
"""

import argparse
import random
import warnings
from collections.abc import Iterator

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler

from core.samplers.plan import Plan, PlanConfig, Position, Source

MAX_DURATION_S = 100.0
NUM_RANKS = 8
NUM_BUCKETS = 30

Step = list[np.ndarray]  # the lengths in each rank's batch


def librispeech_like_lengths(num: int, *, seed: int = 0) -> np.ndarray:
    """Most cuts just below 16 s, where the corpus was split, and the rest spread evenly below: (num,) float32."""
    rng = np.random.default_rng(seed)
    full = 16.4 - rng.gamma(2.5, 0.6, num)
    short = rng.uniform(1.3, 13, num)
    return np.where(rng.random(num) < 0.67, full, short).clip(1.3, 24.5).astype(np.float32)


def as_cuts(lengths: np.ndarray) -> CutSet:
    """Cuts without audio, in random order."""
    return CutSet.from_cuts([MonoCut(str(n), start=0, duration=d, channel=0) for n, d in enumerate(lengths.tolist())])


def fixed_size(lengths: np.ndarray) -> Iterator[Step]:
    """Random batches of as many cuts as fill the budget on average: padding takes them over it."""
    size = int(MAX_DURATION_S / lengths.mean())
    batches = np.split(lengths, np.arange(size, len(lengths), size))
    for begin in range(0, len(batches) - NUM_RANKS, NUM_RANKS):
        yield batches[begin : begin + NUM_RANKS]


def lhotse_steps(lengths: np.ndarray, *, num_buckets: int | None) -> Iterator[Step]:
    """lhotse's dynamic samplers, one for each rank; without buckets they fill the budget in random order."""
    cuts = as_cuts(lengths)
    samplers = []
    for rank in range(NUM_RANKS):
        shared = {"max_duration": MAX_DURATION_S, "shuffle": True, "world_size": NUM_RANKS, "rank": rank, "seed": 0}
        if num_buckets is None:
            samplers.append(DynamicCutSampler(cuts, drop_last=True, **shared))
        else:
            samplers.append(DynamicBucketingSampler(cuts, num_buckets=num_buckets, drop_last=True, **shared))
    for batches in zip(*samplers, strict=True):
        yield [np.array([cut.duration for cut in batch]) for batch in batches]


def plan_steps(lengths: np.ndarray, *, num_ranks: int = NUM_RANKS) -> Iterator[Step]:
    """One epoch of our plan."""
    config = PlanConfig(
        micro_batches_per_step=num_ranks, max_duration_s=MAX_DURATION_S, num_buckets=NUM_BUCKETS, over_budget="error"
    )
    plan = Plan([Source("synthetic", lengths)], config, seed=0)
    for step in plan.steps(Position(0, 0, 0)):
        yield [lengths[[draw.row for draw in draws]] for draws in step.micro_batches]
        if step.after == (0, -(-len(lengths) // config.chunk_draws), 0):
            return


def row(name: str, steps: Iterator[Step], *, num_cuts: int) -> str:
    """One line of the table. Straggler: the longest of a step's padded batches / their mean, mean over steps."""
    kept, useful_s, padded = 0, 0.0, []
    for step in steps:
        kept += sum(map(len, step))
        useful_s += sum(float(batch.sum()) for batch in step)
        padded.append([len(batch) * float(batch.max()) if len(batch) else 0.0 for batch in step])
    padded_s = np.array(padded)  # (steps, ranks)
    straggler = (padded_s.max(axis=1) / padded_s.mean(axis=1)).mean()
    p95, most = np.quantile(padded_s, 0.95) / MAX_DURATION_S, padded_s.max() / MAX_DURATION_S
    fill = padded_s.mean() / MAX_DURATION_S
    return (
        f"| {name} | {useful_s / padded_s.sum():.1%} | {straggler:.3f} | {p95:.3f} | {most:.3f} | {fill:.3f} "
        f"| {kept / num_cuts:.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cuts", type=int, default=60_000, help="for the comparison with lhotse (default: %(default)s)"
    )
    num = parser.parse_args().cuts
    warnings.filterwarnings("ignore", message="You are using Dynamic")
    random.seed(0)
    lengths = librispeech_like_lengths(num)
    header = (
        "| batches | useful share | straggler | p95 / budget | largest / budget | mean / budget | cuts used |\n"
        "|---|---|---|---|---|---|---|"
    )
    print("# Batching\n")
    print(
        f"{num:,} synthetic LibriSpeech-like lengths, budget {MAX_DURATION_S:g} s of padded audio, {NUM_RANKS} ranks.\n"
    )
    print(header)
    print(row("random, fixed number of cuts", fixed_size(lengths), num_cuts=num))
    print(row("random, filled to the budget (lhotse)", lhotse_steps(lengths, num_buckets=None), num_cuts=num))
    name = f"lhotse, {NUM_BUCKETS} buckets"
    print(row(name, lhotse_steps(lengths, num_buckets=NUM_BUCKETS), num_cuts=num))
    print(row(f"plan, {NUM_BUCKETS} buckets", plan_steps(lengths), num_cuts=num))
    everything = librispeech_like_lengths(281_241)
    print(f"\nThe plan over one epoch of all {len(everything):,} lengths, on more ranks:\n\n{header}")
    for num_ranks in (8, 64, 256, 1024):
        steps = plan_steps(everything, num_ranks=num_ranks)
        print(row(f"plan, {num_ranks:,} ranks", steps, num_cuts=len(everything)))


if __name__ == "__main__":
    main()
