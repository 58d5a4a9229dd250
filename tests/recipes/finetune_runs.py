"""Fine-tuning in miniature: a pretrained run, and a configuration over a few English clips that begins with it."""

from pathlib import Path
from typing import Any

import recipes.hubert_iter2.finetune as finetune_recipe
from core.data.index import write_manifest
from core.rundir.exit_codes import ExitCode
from tests.recipes import hubert_runs, runs

CONFIG = """\
run:
  name: finetuned
  device: cpu
  record_samples: true
pretrained:
  run: tiny1
data:
  train: {folder}/train.jsonl
  valid: {folder}/dev.jsonl
  test: {folder}/test.jsonl
  time_mask:
    length: 4
    probability: 0.4
  channel_mask:
    length: 4
    probability: 0.4
plan:
  micro_batches_per_step: 2
  max_duration_s: 8.0
  max_cuts: 2
  num_buckets: 2
  over_budget: skip
model:
  conv_layers: [[8, 10, 5], [8, 8, 8], [16, 8, 8]]
  dim: 16
  num_layers: 2
  num_heads: 2
  ffn_dim: 32
  position_kernel: 8
  position_groups: 2
  layer_drop: 0.2
train:
  max_steps: 6
  log_every_steps: 1
  validate_every_steps: 3
optim:
  lr: 1e-2
  weight_decay: 0.1
  max_norm: 1.0
  freeze:
    patterns: ['hubert\\.feature_extractor\\.']
  thaw:
    patterns: ['hubert\\.']
    after_steps: 3
  schedule:
    kind: tri_stage
    warmup_steps: 2
    hold_steps: 2
    decay_steps: 2
loader:
  num_workers: 0
checkpoint:
  every_steps: 2
decode:
  beam:
    beam_size: 4
loggers:
  tensorboard: false
"""


def pretrain(folder: Path, root: Path) -> None:
    """Run `tiny1` of hubert_iter1 under `root`, two steps long."""
    config = hubert_runs.write_configs(folder)[1]
    for verb, words in ((hubert_runs.prepare, ()), (hubert_runs.train, ("train.max_steps=2",))):
        codes, text = verb(config, root, *words, iteration=1)  # type: ignore[operator]
        assert codes == [ExitCode.DONE], text


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, num in (("train", 12), ("dev", 2), ("test", 3)):
        write_manifest(runs.demo_cuts(split, num), folder / f"{split}.jsonl")
    path = folder / "finetune.yaml"
    path.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return path


def finetune(config: Path, root: Path, *overrides: str, **options: Any) -> tuple[list[int | None], str]:
    """One link, as run `finetuned`."""
    return runs.link(config, root, *overrides, recipe=finetune_recipe, **options)
