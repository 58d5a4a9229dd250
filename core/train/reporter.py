"""What a person and programs get to see of training: records, console lines, loggers, a profile."""

import logging
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from core.config import to_dict
from core.optim import learning_rate
from core.train.hardware import hardware_metrics
from core.train.loggers import Logger, open_loggers
from core.train.metrics import merged_names
from core.train.metrics_log import MetricsLog, step_line
from core.train.processes import PeakMemory
from core.train.progress import Progress
from core.train.run import Run
from core.train.straggler import Straggler
from core.train.timing import Eta

logger = logging.getLogger(__name__)


class Told(NamedTuple):
    """What each rank tells of the steps since the last record, besides its sums."""

    names: list[str]  # of the sums
    host: str
    own_s: float  # not counting what it waited for others
    memory_gib: float  # of its processes


class Reporter:
    """Rank 0 writes; the other ranks take part in the sums only."""

    def __init__(self, run: Run, *, step: int, total_steps: int) -> None:
        self._run = run
        self._total_steps = total_steps
        train, every = run.config.train, run.config.checkpoint.every_steps
        self._eta = Eta(total_steps=total_steps, validate_every=train.validate_every_steps, save_every=every)
        self._log: MetricsLog | None = None
        self._loggers: list[Logger] = []
        self._memory = PeakMemory()
        self._straggler = Straggler(warn_ratio=train.straggler_ratio)
        self._profiler: torch.profiler.profile | None = None
        if run.ranks.is_first:
            self._log = MetricsLog(run.directory, token=run.token, link=run.link)
            self.start(step)
        if run.config.run.profile and run.ranks.is_first:
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=2, warmup=1, active=3),
                on_trace_ready=torch.profiler.tensorboard_trace_handler(str(run.directory / "profile")),
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
        """What was written beyond `step` counts no more: training goes on there, or goes back there."""
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
        """One record of the steps since the last; all ranks together."""
        names = progress.sums.names()
        mine = Told(names, socket.gethostname(), self._run.phases.take_own_s(), self._memory.read_gib())
        told: list[Told] = self._run.ranks.gather(mine)
        metrics = progress.take_metrics(self._run, names=merged_names(one.names for one in told))
        if self._log is None:
            return
        metrics |= self._straggler.observe([one.own_s for one in told], hosts=[one.host for one in told])
        metrics["run_memory_gib"] = sum(one.memory_gib for one in told)
        optim = self._run.config.optim
        metrics |= {"epoch": epoch, "lr": learning_rate(optim, progress.step - 1)}
        metrics |= self._eta.step_quantiles_s() | hardware_metrics(self._run.ranks.device)
        metrics["eta_s"] = self._eta.remaining_s(progress.step)
        self._write(metrics, phase="train", step=progress.step)

    def log_validation(self, metrics: Mapping[str, float], *, step: int, seconds: float) -> None:
        self._eta.add_validation(seconds)
        self._write(dict(metrics), phase="valid", step=step)

    def _write(self, metrics: dict[str, float | None], *, phase: str, step: int) -> None:
        if self._log is None:
            return
        record = self._log.write(metrics, phase=phase, step=step)
        logger.info(step_line(record, total_steps=self._total_steps))
        for one in self._loggers:
            one.write(record)
