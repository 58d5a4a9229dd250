"""What a person and programs get to see of training: records, console lines, loggers, a profile."""

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from core.config.load import to_dict
from core.job.context import note_effective
from core.job.hardware import hardware_metrics
from core.optim.optim import learning_rate
from core.report.loggers import Logger, RankStep, TrainLog, open_loggers
from core.rundir.files import PROFILE, TRAIN_LOG
from core.rundir.metrics_log import MetricsLog, step_line
from core.rundir.processes import PeakMemory
from core.timing.eta import Eta
from core.timing.phases import Straggler
from core.train.metrics import merged_names, ratios
from core.train.progress import Progress
from core.train.settings import TrainingRun

logger = logging.getLogger(__name__)


class RankReport(NamedTuple):
    """The report of one rank on the steps since the last record, besides its sums."""

    names: list[str]  # of the sums
    host: str
    own_s: float  # not counting what it waited for others
    memory_gib: float  # of its processes
    step_s: float | None  # its mean step
    parts: RankStep | None  # of its last step, where train.log tells of all ranks


class Reporter:
    """Rank 0 writes; the other ranks take part in the sums only."""

    def __init__(self, run: TrainingRun, *, step: int, total_steps: int) -> None:
        self._run = run
        self._total_steps = total_steps
        train, checkpoint = run.config.train, run.config.checkpoint
        self._timing = train.timing
        self._eta = Eta(
            total_steps=total_steps,
            validate_every=train.validate_every_steps,
            save_every=checkpoint.every_steps,
            saves_validated=bool(checkpoint.rankings),
            min_samples=self._timing.eta_min_samples,
        )
        self._log: MetricsLog | None = None
        self._train_log: TrainLog | None = None
        self._loggers: list[Logger] = []
        self._memory = PeakMemory()
        self._straggler = Straggler(warn_ratio=train.straggler_ratio)
        self._profiler: torch.profiler.profile | None = None
        if run.ranks.is_first:
            self._log = MetricsLog(run.directory, token=run.token, link=run.link)
            self._train_log = TrainLog(run.directory / TRAIN_LOG, self._timing, total_steps=total_steps)
            note_effective(run.directory, {"eta_mode": self._timing.eta_mode})
            self.start(step)
        if run.config.run.profile and run.ranks.is_first:
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=2, warmup=1, active=3),
                on_trace_ready=torch.profiler.tensorboard_trace_handler(str(run.directory / PROFILE)),
            )
        self._stack = ExitStack()

    def __enter__(self) -> "Reporter":
        self._stack.callback(self._close_loggers)
        self._stack.enter_context(self._memory)
        if self._profiler is not None:
            self._stack.enter_context(self._profiler)
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def start(self, step: int) -> None:
        """Note that training goes on, or goes back, at `step`: what was written beyond it counts no more."""
        if self._log is None:
            return
        self._log.start(step)
        self._close_loggers()
        settings = to_dict(self._run.config)
        self._loggers = open_loggers(self._run.config.loggers, self._run.directory, step=step, run_config=settings)

    def _close_loggers(self) -> None:
        while self._loggers:
            self._loggers.pop().close()

    def observe_step(self, seconds: float) -> None:
        self._eta.add_step(seconds)
        self._run.stop.observe(step_s=seconds)
        if self._profiler is not None:
            self._profiler.step()

    def measure_save(self, save: Callable[[], None]) -> None:
        began = time.perf_counter()
        save()
        self._eta.add_checkpoint(time.perf_counter() - began)

    def log_step(self, progress: Progress, *, epoch: float) -> None:
        """Write one record of the steps since the last; all ranks together."""
        reports: list[RankReport] = self._run.ranks.gather(self._rank_report(progress))
        metrics = progress.take_metrics(self._run, names=merged_names(one.names for one in reports))
        if self._log is None or self._train_log is None:
            return
        metrics |= self._straggler.observe([one.own_s for one in reports], hosts=[one.host for one in reports])
        metrics["run_memory_gib"] = sum(one.memory_gib for one in reports)
        optim = self._run.config.optim
        metrics |= {"epoch": epoch, "lr": learning_rate(optim, progress.step - 1)}
        metrics |= self._run.phases.parts.quantiles_s() | hardware_metrics(self._run.ranks.device)
        metrics |= self._remaining([one.step_s for one in reports], step=progress.step)
        self._write(metrics, phase="train", step=progress.step)
        self._train_log.write_ranks([one.parts for one in reports if one.parts is not None], step=progress.step)

    def _rank_report(self, progress: Progress) -> RankReport:
        """Return what this rank has to say; it waits for the device."""
        phases, names = self._run.phases, progress.sums.names()
        own_s, parts = phases.take_own_s(), None
        if self._timing.rank_scope == "all":
            loss = ratios(["loss"], progress.sums.as_tensor(["loss"]))["loss"]
            parts = RankStep(self._run.ranks.rank, loss, phases.parts.latest_s())
        return RankReport(names, socket.gethostname(), own_s, self._memory.read_gib(), self._eta.step_s(), parts)

    def _remaining(self, steps_s: Sequence[float | None], *, step: int) -> dict[str, float | None]:
        """Return the time to the end, the mean step it counts with, and of how many steps that is."""
        step_s = steps_s[0]
        if self._timing.eta_mode == "global_max" and step_s is not None:
            step_s = max(mean for mean in steps_s if mean is not None)
        remaining_s = self._eta.remaining_s(step, step_s=step_s)
        return {"eta_s": remaining_s, "eta_step_s": step_s, "eta_samples": self._eta.num_samples}

    def log_validation(self, metrics: Mapping[str, float], *, step: int, seconds: float) -> None:
        self._eta.add_validation(seconds)
        self._write(dict(metrics), phase="valid", step=step)

    def _write(self, metrics: dict[str, float | None], *, phase: str, step: int) -> None:
        if self._log is None:
            return
        record = self._log.write(metrics, phase=phase, step=step)
        logger.info(step_line(record, total_steps=self._total_steps))
        for one in (self._train_log, *self._loggers):
            if one is not None:
                one.write(record)
