"""What `plan.alike_micro_batches` costs in waiting for other ranks, and what mixing lengths gains in loss.

    python -m tests.bench.mixing [--steps 90] [--seeds 3]

Prints markdown. Waiting: synthetic LibriSpeech-like lengths. Loss: recipes/lmu_gigaspeech/tiny.yaml on the demo corpus,
whose languages differ in length (English 2.9 s, Russian 8.9 s on average), interleaved.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from core.data.sources import open_sources
from core.rundir.files import METRICS
from core.rundir.metrics_log import read_metrics
from core.samplers.plan import Plan, PlanConfig, Source
from tests.bench.batching import MAX_DURATION_S, librispeech_like_lengths

ROOT = Path(__file__).resolve().parents[2]
BLEND = ROOT / "manifests" / "blends" / "demo.yaml"
PER_STEP = 32
NUM_RANKS = 8
LOSS_PLAN = {"micro_batches_per_step": 4, "max_duration_s": 32.0, "max_cuts": 4, "num_buckets": 8}


def straggling(plan: Plan, lengths: np.ndarray, *, num_steps: int) -> float:
    """Return longest / mean of the padded micro-batches that the ranks have at the same time, on average."""
    ratios = []
    for step in islice(plan.steps(), num_steps):
        padded = [len(draws) * lengths[[draw.row for draw in draws]].max(initial=0) for draws in step.micro_batches]
        together = np.reshape(padded, (-1, NUM_RANKS))
        ratios += (together.max(axis=1) / together.mean(axis=1)).tolist()
    return statistics.fmean(ratios)


def print_waiting() -> None:
    lengths = librispeech_like_lengths(281_241)
    print(f"\n## Waiting: steps of {PER_STEP} micro-batches of {MAX_DURATION_S:g} s on {NUM_RANKS} ranks\n")
    print("| alike_micro_batches | spread of lengths in a step / of all | longest / mean of the ranks |\n|---|---|---|")
    for alike in (PER_STEP, NUM_RANKS, 1):
        rules = PlanConfig(micro_batches_per_step=PER_STEP, max_duration_s=MAX_DURATION_S, alike_micro_batches=alike)
        plan = Plan([Source("synthetic", lengths)], rules, seed=0)
        found, note = plan.statistics, "" if alike >= NUM_RANKS else " (refused: fewer than ranks)"
        ratio = straggling(plan, lengths, num_steps=found.num_chunk_steps)
        print(f"| {alike}{note} | {found.spread_within_step / found.spread:.2f} | {ratio:.3f} |", flush=True)


def trained(runs: Path, *, alike: int, seed: int, num_steps: int) -> list[float]:
    """Return the validation losses of a tiny run, three times on the way."""
    name = f"alike{alike}_seed{seed}"
    valid = runs / "valid.yaml"
    demo = ROOT / "manifests" / "demo"
    valid.write_text(f"sources: [{{manifest: {demo}/english_dev.jsonl}}, {{manifest: {demo}/russian_dev.jsonl}}]\n")
    words = [f"run.name={name}", f"run.seed={seed}", f"data.train={BLEND}", f"data.valid={valid}"]
    words += [f"plan.{key}={value}" for key, value in {**LOSS_PLAN, "alike_micro_batches": alike}.items()]
    words += [f"train.max_steps={num_steps + 2}", f"run.link_steps={num_steps + 1}", "loggers.tensorboard=false"]
    words += [f"train.validate_every_steps={num_steps // 3}", "train.log_every_steps=10", "checkpoint.every_steps=null"]
    command = [sys.executable, "-m", "recipes.lmu_gigaspeech.train", "--config", "recipes/lmu_gigaspeech/tiny.yaml"]
    subprocess.run([*command, *words], cwd=ROOT, env={**os.environ, "BATON_RUNS": str(runs)}, capture_output=True)
    return [record["valid_loss"] for record in read_metrics(runs / name / METRICS) if record["phase"] == "valid"]


def shares(plan: Plan) -> Iterable[float]:
    """Yield the share of the first source in each step of a chunk."""
    for step in islice(plan.steps(), plan.chunk(0).num_steps):
        yield statistics.fmean(draw.source == 0 for batch in step.micro_batches for draw in batch)


def print_loss(*, num_steps: int, num_seeds: int) -> None:
    sources = [source.planned for source in open_sources(BLEND)]
    per_step = LOSS_PLAN["micro_batches_per_step"]
    print(f"\n## Loss: tiny.yaml on both languages, {per_step} micro-batches a step, 1 rank, {num_seeds} seeds\n")
    print("| alike_micro_batches | steps of one language | validation loss after 1/3, 2/3, all steps |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        losses = {
            (seed, alike): trained(Path(folder), alike=alike, seed=seed, num_steps=num_steps)
            for seed in range(num_seeds)
            for alike in (per_step, 1)
        }
    for alike in (per_step, 1):
        rules = PlanConfig(**LOSS_PLAN, alike_micro_batches=alike, over_budget="skip")
        alone = statistics.fmean(share in (0, 1) for share in shares(Plan(sources, rules, seed=0)))
        means = np.mean([losses[seed, alike] for seed in range(num_seeds)], axis=0)
        print(f"| {alike} | {alone:.0%} | {', '.join(f'{mean:.3f}' for mean in means)} |")
    ratios = np.array([np.divide(losses[seed, 1], losses[seed, per_step]) for seed in range(num_seeds)])  # (seeds, 3)
    each = ", ".join(f"{np.median(one):.3f} ({min(one):.3f} to {max(one):.3f})" for one in ratios.T)
    print(f"\nLoss mixed / alike of the same seed, median (min to max): {each}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print("# Mixing lengths in a step")
    print_waiting()
    print_loss(num_steps=arguments.steps, num_seeds=arguments.seeds)


if __name__ == "__main__":
    main()
