"""Training on token sequences, without audio and without a manifest: planned, streamed, trained and resumed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.checkpoint.store import CheckpointConfig
from core.config.load import parse_args
from core.config.schema import section
from core.data.stream import LoaderConfig, TrainStream
from core.job.run import Outcome, Run, run_job
from core.losses.output import LossOutput
from core.optim.optim import OptimConfig
from core.parallel.engine import build_engine
from core.report.loggers import LoggerConfig
from core.rundir.exit_codes import ExitCode
from core.rundir.files import METRICS
from core.rundir.whole_files import read_records
from core.samplers.plan import Draw, Plan, Source
from core.samplers.settings import PlanConfig, TokenPlanConfig
from core.seeding import generator, seed_everything
from core.train.config import TrainingConfig
from core.train.loop import fit
from tests.recipes import runs

VOCABULARY = 17
LENGTHS = np.random.default_rng(0).geometric(1 / 40, 300).clip(2, 128)  # int64: any numbers will do


YAML = """\
run:
  name: texts
  device: cpu
  record_samples: true
plan:
  micro_batches_per_step: 2
  max_tokens: 256
  num_buckets: 6
  chunk_draws: 120
train:
  max_steps: 25
  log_every_steps: 1
optim:
  lr: 0.1
checkpoint:
  every_steps: 4
loggers:
  tensorboard: false
"""


@section
class Config(TrainingConfig):
    plan: TokenPlanConfig = TokenPlanConfig(micro_batches_per_step=2, max_tokens=256, num_buckets=6, chunk_draws=120)
    optim: OptimConfig = OptimConfig(lr=0.1)
    checkpoint: CheckpointConfig = CheckpointConfig(every_steps=4)
    loggers: LoggerConfig = LoggerConfig(tensorboard=False)


@dataclass(frozen=True)
class TokenBatch:
    token_ids: Tensor  # (B, L) int64, padded with -1
    num_targets: int
    sample_ids: list[str]
    length: float
    padded_length: float
    unit: str = "tokens"
    bad: list[Any] = field(default_factory=list)

    def to(self, device: torch.device) -> "TokenBatch":
        return replace(self, token_ids=self.token_ids.to(device))


@dataclass(frozen=True)
class Texts(torch.utils.data.Dataset[TokenBatch]):
    """Sequences in which every token is the one before plus 1 or 2."""

    segment: int = 0

    def __getitem__(self, draws: Any) -> TokenBatch:
        rows = [self._text(draw) for draw in draws]
        ids = nn.utils.rnn.pad_sequence(rows or [torch.full((2,), -1)], batch_first=True, padding_value=-1)
        length = sum(map(len, rows))
        names = [str(draw.row) for draw in draws]
        return TokenBatch(ids, length - len(rows), names, length, ids.numel() if rows else 0)

    def _text(self, draw: Draw) -> Tensor:
        steps = generator(5, "text", draw.row).integers(1, 3, int(LENGTHS[draw.row]))
        return torch.from_numpy(steps.cumsum() % VOCABULARY)


class Bigram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.logits(token_ids)  # type: ignore[no-any-return]

    def blocks(self) -> list[nn.Module]:
        return []


def loss_fn(model: nn.Module, batch: TokenBatch) -> LossOutput:
    logits = model(batch.token_ids[:, :-1].clamp(min=0))  # (B, L - 1, V)
    return LossOutput(F.cross_entropy(logits.transpose(1, 2), batch.token_ids[:, 1:], ignore_index=-1, reduction="sum"))


def train(config: Config, run: Run) -> Outcome:
    plan = Plan([Source("texts", LENGTHS, unit="tokens")], config.plan, seed=run.seed)
    data = TrainStream(plan, Texts(), config=LoaderConfig(num_workers=0), ranks=run.ranks)
    seed_everything(run.seed, "model")
    engine = build_engine(Bigram(), config.parallel, optim=config.optim, ranks=run.ranks)
    return fit(run, engine, data, loss_fn)


def main(argv: Sequence[str]) -> int:
    config = parse_args(Config, argv=argv, prog="train", description="toy", default_config=Path("none"))
    return run_job(config, partial(train, config))


def job(root: Path, *overrides: str) -> list[int | None]:
    root.mkdir(exist_ok=True)
    (root / "texts.yaml").write_text(YAML)
    codes, text = runs.link(root / "texts.yaml", root, *overrides, recipe=SimpleNamespace(main=main))
    assert "tokens/s" in text, text
    return codes


def test_tokens_are_trained_on_and_resumed_exactly(tmp_path: Path) -> None:
    assert job(tmp_path / "whole") == [ExitCode.DONE]
    codes = [job(tmp_path / "cut", "run.link_steps=9") for _ in range(3)]
    assert codes == [[ExitCode.CONTINUE], [ExitCode.CONTINUE], [ExitCode.DONE]]
    whole, cut = tmp_path / "whole" / "texts", tmp_path / "cut" / "texts"
    assert runs.losses(cut) == runs.losses(whole) and len(runs.losses(whole)) == 25
    assert runs.samples(cut) == runs.samples(whole)
    runs.assert_same_state(runs.state(cut), runs.state(whole))
    records = [record for record in read_records(whole / METRICS) if record["phase"] == "train"]
    assert records[-1]["loss"] < 0.75 * records[0]["loss"]
    assert all(record["tokens_per_s"] > 0 and 0 <= record["padding_share"] < 0.5 for record in records)
    assert {"data_wait_share", "targets_per_s", "eta_s"} <= records[-1].keys() and "audio_s_per_s" not in records[-1]


def test_a_plan_of_tokens_says_tokens() -> None:
    rules = TokenPlanConfig(micro_batches_per_step=2, max_tokens=200, max_length=50, min_length=4, over_budget="skip")
    lengths = np.array([10] * 160 + [3] * 3 + [60] * 2)
    texts = Source("texts", lengths, unit="tokens")
    plan = Plan([texts], rules, seed=0)
    assert plan.statistics.describe() == [
        "source texts: 160 sequences = 1,600 tokens, ~4.0 steps an epoch; 3 shorter than 4 tokens skipped; "
        "2 longer than 50 tokens skipped",
        "step = 2 micro-batches x ~200 tokens = ~400 tokens in ~40 sequences; padding 0.0 %",
        "lengths = 10 +- 0 tokens, within a step +- 0 tokens",
        "chunk = 160 sequences planned together = 4 whole steps",
    ]
    strict = replace(rules, over_budget="error")
    for source, config, message in [
        (
            Source("a", lengths, unit="tokens"),
            strict,
            r"row 163 .*60 tokens is over budget, plan\.max_length allows 50 t",
        ),
        (
            Source("a", lengths, unit="tokens"),
            replace(strict, max_length=None, max_tokens=55),
            r"plan\.max_tokens allows",
        ),
        (
            Source("a", lengths[160:163], unit="tokens"),
            strict,
            r"no sequence to draw: .* than plan\.min_length=4 tokens",
        ),
        (
            Source("a", lengths - 3, unit="tokens"),
            strict,
            r"row 160: a length must be positive and finite, not 0 tokens",
        ),
        (Source("a", lengths), strict, r"source 'a' has lengths in s, plan\.max_tokens counts tokens"),
        (Source("a", lengths, unit="tokens"), PlanConfig(micro_batches_per_step=1, max_duration_s=9.0), "in tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            Plan([source], config, seed=0)
    with pytest.raises(ValueError, match=r"max_length=300 must fit .*: max_tokens=200 holds a sequence of at most"):
        replace(rules, max_length=300)
