"""Both iterations on synthetic speech whose phones are known: they learn, and the second finds better units.

The test of a seed takes 40 s of one CPU, in static shapes. With other seeds:
`python -m tests.recipes.test_hubert_synthetic 1 2 3` prints their figures.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core.rundir.files import METRICS, SCORES
from core.rundir.whole_files import read_json, read_records
from tests.recipes import hubert_runs
from tests.recipes.synthetic_speech import random_grammar, write_speech

NUM_CLUSTERS = 32
FEATURES = {1: "  convention: torchaudio\n", 2: "  run: tiny1\n  layer: 1\n"}
CONFIG = """\
run:
  name: tiny{iteration}
  seed: {seed}
  device: cpu
data:
  train: {folder}/train.jsonl
  valid: {folder}/dev.jsonl
  labels: labels{iteration}
  crop:
    max_s: 3.0
  mask:
    probability: 0.4
    length: 6
features:
{features}labelling:
  kmeans:
    num_clusters: {num_clusters}
  num_shards: 2
plan:
  micro_batches_per_step: 1
  max_duration_s: 9.0
  num_buckets: 2
  static_shapes: true
  min_cut_s: 1.5
  max_cut_s: 3.0
  over_budget: crop
model:
  conv_layers: [[32, 10, 5], [48, 8, 4], [48, 8, 4], [48, 4, 4]]
  dim: 48
  num_layers: 2
  num_heads: 4
  ffn_dim: 192
  position_kernel: 16
  position_groups: 4
  projection_dropout: 0.0
  attention_dropout: 0.0
  dropout: 0.0
  layer_drop: 0.0
  feature_grad_scale: 1.0
  final_dim: 32
  num_classes: {num_clusters}
train:
  max_steps: 300
  log_every_steps: 50
  validate_every_steps: 300
loss:
  unmasked_weight: 0.3
optim:
  lr: 4e-3
  betas: [0.9, 0.98]
  max_norm: 10.0
  schedule:
    kind: linear
    warmup_steps: 60
    total_steps: 300
quality:
  manifest: {folder}/dev.jsonl
  fit: {folder}/train.jsonl
  layers: [1, 2]
  num_clusters: {num_clusters}
loader:
  num_workers: 0
loggers:
  tensorboard: false
"""


def run(folder: Path, *, seed: int) -> dict[str, float]:
    """Prepare 1, train 1, prepare 2, train 2 in `folder`; what the recipes say of themselves."""
    grammar = random_grammar(seed)
    write_speech(folder / "train", num_clips=120, seed=1000 + seed, grammar=grammar)
    write_speech(folder / "dev", num_clips=40, seed=2000 + seed, grammar=grammar)
    configs = {}
    for iteration, features in FEATURES.items():
        configs[iteration] = folder / f"tiny{iteration}.yaml"
        values = {"iteration": iteration, "features": features, "folder": folder, "seed": seed}
        configs[iteration].write_text(CONFIG.format(**values, num_clusters=NUM_CLUSTERS))
    hubert_runs.both_iterations(configs, folder / "runs", timeout_s=300)
    found = {}
    for iteration in configs:
        scores = read_json(folder / "runs" / f"tiny{iteration}" / SCORES)
        found |= {f"mfcc{iteration}": scores["mfcc/pnmi"], f"pnmi{iteration}": scores["layer_1/pnmi"]}
        records = read_records(folder / "runs" / f"tiny{iteration}" / METRICS)
        (valid,) = [record for record in records if record["phase"] == "valid"]
        found |= {f"accuracy{iteration}": valid["valid_masked_accuracy"]}
        found |= {f"unigram{iteration}": valid["valid_unigram_accuracy"]}
    return found | {"gain_low": scores["layer_1/pnmi_over_teacher_low"]}


def test_the_second_iteration_finds_better_units_than_the_first(tmp_path: Path) -> None:
    found = run(tmp_path, seed=1)
    chance = 1 / NUM_CLUSTERS
    assert found["accuracy1"] > 3 * chance and found["accuracy2"] > 3 * chance, found
    assert found["accuracy1"] > found["unigram1"] and found["accuracy2"] > found["unigram2"], found
    assert found["pnmi2"] > found["pnmi1"] > found["mfcc1"], found
    assert found["gain_low"] > 0, f"the bootstrap interval of the gain lies above 0: {found}"


def main(argv: Sequence[str] | None = None) -> None:
    """The figures of other seeds."""
    parser = argparse.ArgumentParser(prog="python -m tests.recipes.test_hubert_synthetic", description=main.__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    for seed in parser.parse_args(argv).seeds:
        with tempfile.TemporaryDirectory() as place:
            told = run(Path(place), seed=seed)
        print(seed, " ".join(f"{name} {value:.3f}" for name, value in told.items()), flush=True)


if __name__ == "__main__":
    main()
