"""Contrastive training in miniature: configurations over a few clips, their encoders, and links on any strategy."""

from pathlib import Path
from typing import Any

import pytest
import torch

import recipes.csa_stage1.train as recipe
from core.data.index import write_manifest
from core.rundir.files import METRICS
from core.rundir.metrics_log import read_metrics
from recipes.csa_stage1 import score
from tests.recipes import runs

if not torch.cuda.is_available():  # which DeepSpeed would take, and these runs do not
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  # slow: once, and not in each forked rank

PATIENCE_S = 300.0  # of a busy machine
NUM_TEST = 12
HUBERT = """\
    kind: hubert
    hubert:
      conv_layers: [[8, 10, 5], [8, 8, 8], [16, 8, 8]]
      dim: 16
      num_layers: 2
      num_heads: 2
      ffn_dim: 32
      position_kernel: 8
      position_groups: 2
      layer_drop: 0.0
"""
LMU = """\
    kind: lmu
    encoder:
      kind: lmu
      dim: 16
      num_blocks: 1
      subsampling_channels: 8
      memory_channels: 4
      order: 4
      ffn_dim: 32
    features:
      normalize: corpus
"""
OWN_TEXT = """\
    kind: own
    dim: 16
    num_layers: 1
    num_heads: 2
    ffn_dim: 32
"""
CHARACTERS = "    kind: characters\n"
NORMALIZED = "    normalize: true\n"
CONFIG = """\
run:
  name: tiny
  device: cpu
  record_samples: true
data:
  train: {folder}/train.jsonl
  valid: {folder}/dev.jsonl
  test: {folder}/test.jsonl
  tokenizer:
{tokenizer}  crop:
    min_s: 0.5
    max_s: 1.2
  pairs:
    text: spoken
{pairs}plan:
  micro_batches_per_step: 4
  max_duration_s: 3.6
  max_cuts: 3
  constant_cuts: true
  num_buckets: 2
  max_cut_s: 1.2
  over_budget: crop
model:
  speech:
{speech}  text:
{text}  projection_dim: 8
train:
  max_steps: 6
  log_every_steps: 1
  validate_every_steps: 3
optim:
  lr: 1e-2
  weight_decay: 0.1
  max_norm: 1.0
gallery:
  matched: 5
  shown: 4
loader:
  num_workers: 0
checkpoint:
  every_steps: 2
loggers:
  tensorboard: false
"""
WITHOUT_CHANCE = (
    "model.speech.hubert.dropout=0", "model.speech.hubert.attention_dropout=0",
    "model.speech.hubert.projection_dropout=0", "model.text.dropout=0", "model.pooling.dropout=0",
)  # fmt: skip


def strategy(name: str) -> tuple[str, ...]:
    """The settings of `ddp`, `fsdp2`, or `zero 0` to `zero 3`, where all parameters are dealt out."""
    if not name.startswith("zero "):
        return (f"parallel.strategy={name}",)
    stage = name.removeprefix("zero ")
    words = ("parallel.strategy=deepspeed", f"parallel.zero.stage={stage}")
    return (*words, "parallel.zero.param_persistence_threshold=0") if stage == "3" else words


def write_config(
    folder: Path,
    *,
    speech: str = HUBERT,
    text: str = OWN_TEXT,
    tokenizer: str = CHARACTERS,
    pairs: str = NORMALIZED,
) -> Path:
    """A configuration over a few clips; lines of YAML choose the encoders and what they get."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, num in (("train", 30), ("dev", 8), ("test", NUM_TEST)):
        write_manifest(runs.demo_cuts(split, num), folder / f"{split}.jsonl")
    path = folder / "csa.yaml"
    blocks = {"speech": speech, "text": text, "tokenizer": tokenizer, "pairs": pairs}
    path.write_text(CONFIG.format(folder=folder, **blocks), encoding="utf-8")
    return path


def save_wav2vec2(folder: Path, **options: Any) -> Path:
    """A directory of Hugging Face with a tiny wav2vec 2.0 at random, as the base model is without other `options`."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": [8, 8, 16], "conv_kernel": [10, 8, 8], "conv_stride": [5, 8, 8]}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions, **positions, **options)).save_pretrained(folder)
    return folder


def save_bert(folder: Path, *, width: int = 16) -> Path:
    """A directory of Hugging Face with a tiny BERT at random, and a tokenizer of letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(1)
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "'", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def begin(config: Path, root: Path, *overrides: str, report: bool = False, **options: Any) -> runs.Job:
    """Start a link of run `tiny`; without the report also without the picture of similarities."""
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr(score, "draw_similarities", lambda *_: None)
        return runs.begin(config, root, *overrides, recipe=recipe, report=report, **options)


def train(config: Path, root: Path, *overrides: str, **options: Any) -> tuple[list[int | None], str]:
    """One link of run `tiny` from its start to its end."""
    job = begin(config, root, *overrides, **options)
    return job.wait(PATIENCE_S), job.text


def norms(run: Path) -> list[float]:
    return [record["grad_norm"] for record in read_metrics(run / METRICS) if record["phase"] == "train"]


def validations(run: Path) -> list[dict[str, float]]:
    """What each validation found, without its time."""
    found = [record for record in read_metrics(run / METRICS) if record["phase"] == "valid"]
    return [{name: value for name, value in record.items() if name.startswith("valid_")} for record in found]
