"""Both iterations of HuBERT in miniature: configurations over a few clips, and one chain of prepare and train."""

from pathlib import Path
from typing import Any

import recipes.hubert_iter1.prepare as prepare1
import recipes.hubert_iter1.train as train1
import recipes.hubert_iter2.prepare as prepare2
import recipes.hubert_iter2.train as train2
from core.data.index import ManifestIndex, write_manifest
from core.rundir.exit_codes import ExitCode
from tests.recipes import runs

PREPARE, TRAIN = {1: prepare1, 2: prepare2}, {1: train1, 2: train2}
FEATURES = {1: "  convention: kaldi\n", 2: "  run: tiny1\n  layer: 1\n"}
CONFIG = """\
run:
  name: tiny{iteration}
  device: cpu
  record_samples: true
data:
  train: {folder}/train.jsonl
  valid: {folder}/dev.jsonl
  labels: labels{iteration}
  crop:
    max_s: 1.2
features:
{features}labelling:
  kmeans:
    num_clusters: 8
  num_shards: 3
  batch_s: 4.0
plan:
  micro_batches_per_step: 2
  max_duration_s: 8.0
  max_cuts: 2
  num_buckets: 2
  max_cut_s: 1.2
  over_budget: crop
model:
  conv_layers: [[8, 10, 5], [8, 8, 8], [16, 8, 8]]
  dim: 16
  num_layers: 2
  num_heads: 2
  ffn_dim: 32
  position_kernel: 8
  position_groups: 2
  layer_drop: 0.2
  final_dim: 8
  num_classes: 8
train:
  max_steps: 6
  log_every_steps: 1
  validate_every_steps: 3
optim:
  lr: 1e-2
  max_norm: 1.0
quality:
  manifest: {folder}/dev.jsonl
  fit: {folder}/dev.jsonl
  layers: [1, 2]
  num_clusters: 8
loader:
  num_workers: 0
checkpoint:
  every_steps: 2
loggers:
  tensorboard: false
"""


def write_configs(folder: Path) -> dict[int, Path]:
    """A configuration for each iteration over clips of both languages to train on and two Russian ones, with phones."""
    folder.mkdir(parents=True, exist_ok=True)
    russian = {split: ManifestIndex.open(runs.DEMO / f"russian_{split}.jsonl") for split in ("train", "dev")}
    trained = [russian["train"].read(row) for row in range(4)]
    write_manifest([*runs.demo_cuts("train", 6), *trained], folder / "train.jsonl")
    write_manifest([russian["dev"].read(row) for row in range(2)], folder / "dev.jsonl")
    paths = {}
    for iteration, features in FEATURES.items():
        paths[iteration] = folder / f"tiny{iteration}.yaml"
        paths[iteration].write_text(CONFIG.format(folder=folder, iteration=iteration, features=features))
    return paths


def prepare(config: Path, root: Path, *overrides: str, iteration: int, **options: Any) -> tuple[list[int | None], str]:
    """One link of the preparation, as run `labels1` or `labels2`."""
    words = (f"run.name=labels{iteration}", *overrides)
    return runs.link(config, root, *words, recipe=PREPARE[iteration], **options)


def train(config: Path, root: Path, *overrides: str, iteration: int, **options: Any) -> tuple[list[int | None], str]:
    """One link of the training, as run `tiny1` or `tiny2`."""
    return runs.link(config, root, *overrides, recipe=TRAIN[iteration], **options)


def both_iterations(configs: dict[int, Path], root: Path, *, timeout_s: float = 60) -> None:
    """Prepare 1, train 1, prepare 2, train 2, each to its end."""
    for iteration, config in configs.items():
        for verb in (prepare, train):
            codes, text = verb(config, root, iteration=iteration, timeout_s=timeout_s)
            assert codes == [ExitCode.DONE], text
