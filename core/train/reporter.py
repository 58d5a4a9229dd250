"""What a person and programs get to see of training: records, console lines, loggers, a profile."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from core.config import to_dict
from core.optim import learning_rate
from core.train.hardware import hardware_metrics
from core.train.loggers import Logger, open_loggers
from core.train.metrics_log import MetricsLog, step_line
from core.train.progress import Progress
from core.train.run import Run
from core.train.timing import Eta

logger = logging.getLogger(__name__)


class Reporter:
    """Rank 0 writes; the other ranks take part in the sums only."""

    def __init__(self, run: Run, *, step: int, total_steps: int) -> None:
        self._run = run
        self._total_steps = total_steps
        train, every = run.config.train, run.config.checkpoint.every_steps
        self._eta = Eta(total_steps=total_steps, validate_every=train.validate_every_steps, save_every=every)
        self._log: MetricsLog | None = None
        self._loggers: list[Logger] = []
        self._profiler: torch.profiler.profile | None = None
        if run.ranks.is_first:
            self._log = MetricsLog(run.directory, token=run.token, link=run.link, step=step)
            settings = to_dict(run.config)
            self._loggers = open_loggers(run.config.loggers, run.directory, step=step, run_config=settings)
        if run.config.run.profile and run.ranks.is_first:
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=2, warmup=1, active=3),
                on_trace_ready=torch.profiler.tensorboard_trace_handler(str(run.directory / "profile")),
            )
        self._stack = ExitStack()

    def __enter__(self) -> "Reporter":
        if self._profiler is not None:
            self._stack.enter_context(self._profiler)
        for one in self._loggers:
            self._stack.callback(one.close)
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

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
        metrics = progress.take_metrics(self._run)
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
