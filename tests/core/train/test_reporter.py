"""The time to the end as records tell it: by the slowest rank, with the validations and checkpoints to come."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoint.retention import BestConfig
from core.checkpoint.store import CheckpointConfig, CheckpointStore
from core.distributed import Ranks
from core.job.run import Run
from core.job.settings import RunConfig
from core.job.stop import StopConfig, StopSignal
from core.optim.optim import OptimConfig
from core.report.loggers import LoggerConfig
from core.rundir.files import METRICS
from core.rundir.metrics_log import read_metrics
from core.timing.phases import Phases, TimingConfig
from core.train.progress import Progress
from core.train.reporter import RankReport, Reporter
from core.train.settings import TrainConfig

ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))
TOTAL = 100


@dataclass(frozen=True)
class Config:
    run: RunConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    optim: OptimConfig
    stop: StopConfig
    loggers: LoggerConfig


@dataclass(frozen=True)
class WithSlowRank(Ranks):
    """Rank 0 of two; the other one has told of steps of 3 s."""

    def gather(self, item: Any) -> list[Any]:
        is_report = isinstance(item, RankReport)
        return [item, item._replace(step_s=3.0, own_s=2 * item.own_s)] if is_report else [item]


def reporter_of(
    folder: Path, *, eta_mode: str = "rank0", keep_best: BestConfig | None = None, ranks: Ranks = ALONE
) -> tuple[Run, Reporter]:
    checkpoint = CheckpointConfig(every_steps=20, keep_best=keep_best)
    timing = TimingConfig(eta_mode=eta_mode, eta_min_samples=2)  # type: ignore[arg-type]
    train = TrainConfig(max_steps=TOTAL, validate_every_steps=25, timing=timing)
    loggers, stop = LoggerConfig(tensorboard=False), StopConfig()
    config = Config(RunConfig(name="r"), train, checkpoint, OptimConfig(lr=1.0), stop, loggers)
    store = CheckpointStore(folder / "checkpoints", checkpoint, ranks=ALONE, token=1)
    run = Run(folder, config, ranks, 1, 1, StopSignal(stop, deadline=None), store, Phases(ranks.device))
    return run, Reporter(run, step=0, total_steps=TOTAL)


def told(run: Run, reporter: Reporter, *, step: int) -> dict[str, Any]:
    """What the record of a step says."""
    reporter.log_step(Progress(25, None, step=step), epoch=0.0)
    return list(read_metrics(run.directory / METRICS))[-1]


def measure(reporter: Reporter, steps_s: Sequence[float]) -> None:
    for seconds in steps_s:
        reporter.observe_step(seconds)


@pytest.mark.parametrize(("eta_mode", "step_s"), [("rank0", 1.0), ("global_max", 3.0)])
def test_steps_of_the_slowest_rank_count_where_that_is_wanted(eta_mode: str, step_s: float, tmp_path: Path) -> None:
    run, reporter = reporter_of(tmp_path, eta_mode=eta_mode, ranks=WithSlowRank(*vars(ALONE).values()))
    with reporter:
        measure(reporter, [9.0])  # the first one of a process does not count
        assert told(run, reporter, step=1)["eta_s"] is None, "nothing is measured"
        measure(reporter, [0.5, 1.5])
        record = told(run, reporter, step=10)
    assert (record["eta_s"], record["eta_step_s"]) == (90 * step_s, step_s)


BEST = BestConfig(metric="valid_loss", mode="min")


@pytest.mark.parametrize(("keep_best", "saves"), [(None, {30: 4, 80: 1, 99: 1}), (BEST, {30: 6, 80: 1, 99: 1})])
def test_validations_and_every_checkpoint_count(
    keep_best: BestConfig | None, saves: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After step 30: validations at 50, 75, 100; checkpoints at 40, 60, 80, 100, and with a ranking at 50, 75 too."""
    clock = iter([0.0, 7.0])
    run, reporter = reporter_of(tmp_path, keep_best=keep_best)
    with reporter:
        measure(reporter, [9.0, 1.0, 1.0])
        reporter.log_validation({"valid_loss": 1.0}, step=25, seconds=11.0)
        with monkeypatch.context() as patch:
            patch.setattr(time, "perf_counter", lambda: next(clock))
            reporter.measure_save(lambda: None)
        found = {step: told(run, reporter, step=step)["eta_s"] for step in (30, 80, 99, 100)}
    validations = {30: 3, 80: 1, 99: 1}
    expected = {step: TOTAL - step + 11.0 * validations[step] + 7.0 * saves[step] for step in saves}
    assert found == pytest.approx(expected | {100: 0.0})
