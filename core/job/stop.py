"""When to stop: a signal sets a flag, the deadline is the job's end time, asked of SLURM now and then.

The flag is read by the loop, which votes on it, saves and leaves. Loader workers ignore the signals.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Literal

from core.config.schema import section
from core.signals import STOP_SIGNALS

LARGEST_MARGIN_SHARE = 0.1
ASK_EVERY_S = 60.0  # a limit may be changed while the job runs, and many jobs ask
ASK_TIMEOUT_S = 20.0


@section
class StopConfig:
    """Settings of the stop before a job ends: `margin_s` seconds before.

    null: 3 x the time of a save + the longest step + 60 s, but at most a tenth of the link.
    """

    margin_s: float | None = None


@section
class EarlyStopConfig:
    """Stop when `metric` has not improved by `min_delta` in `patience` validations in a row."""

    metric: str
    mode: Literal["min", "max"] = "min"
    patience: int = 10
    min_delta: float = 0.0


class StopSignal:
    """The request to stop, with its reason; None while there is none."""

    def __init__(self, config: StopConfig, *, deadline: float | None) -> None:
        """Take the end of the job as `deadline`, in seconds since the epoch; None where nothing limits it."""
        self._margin_s = config.margin_s
        self._deadline = deadline
        self._started = time.time()
        self._signal: str | None = None
        self._longest_save_s = 0.0
        self._longest_step_s = 0.0

    def install(self) -> None:
        """Take over the stop signals of this process. A second Ctrl-C interrupts at once."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def follow(self, job: str) -> None:
        """Take the deadline from SLURM, repeatedly, in a thread; for one rank, as a vote is enough."""

        def ask() -> None:
            while True:
                self._deadline = end_of_slurm_job(job) or self._deadline
                time.sleep(ASK_EVERY_S)

        threading.Thread(target=ask, name="deadline", daemon=True).start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._signal = signal.Signals(number).name

    def observe(self, *, step_s: float = 0.0, save_s: float = 0.0) -> None:
        """Learn how long a step or a save takes, for the margin."""
        self._longest_step_s = max(self._longest_step_s, step_s)
        self._longest_save_s = max(self._longest_save_s, save_s)

    @property
    def margin_s(self) -> float:
        """The seconds before the deadline at which to stop."""
        if self._margin_s is not None:
            return self._margin_s
        wanted = 3 * self._longest_save_s + self._longest_step_s + 60.0
        link_s = (self._deadline or 0.0) - self._started
        return min(wanted, LARGEST_MARGIN_SHARE * max(link_s, 0.0))

    @property
    def reason(self) -> str | None:
        """The reason why this rank wants to stop now, in words; None if it does not."""
        if self._signal is not None:
            return f"signal {self._signal}"
        if self._deadline is not None and time.time() >= self._deadline - self.margin_s:
            return f"time limit in {self._deadline - time.time():.0f} s"
        return None


def end_of_slurm_job(job: str) -> float | None:
    """Return when SLURM will end a job, in seconds since the epoch; None without a limit or an answer."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%e"]
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ASK_TIMEOUT_S)
        return float(answer.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None


class EarlyStop:
    """A count of validations without improvement; its state travels in the checkpoint."""

    def __init__(self, config: EarlyStopConfig) -> None:
        self._config = config
        self._best: float | None = None
        self._stale = 0

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """Return whether it is time to stop. ValueError for a metric that the validation does not report."""
        if self._config.metric not in metrics:
            raise ValueError(
                f"train.early_stop.metric={self._config.metric} is not among the validation metrics: {sorted(metrics)}"
            )
        value = metrics[self._config.metric]
        sign = 1.0 if self._config.mode == "min" else -1.0
        if self._best is None or sign * (self._best - value) > self._config.min_delta:
            self._best, self._stale = value, 0
        else:
            self._stale += 1
        return self._stale >= self._config.patience

    def state(self) -> dict[str, float | int | None]:
        return {"best": self._best, "stale": self._stale}

    def restore(self, state: Mapping[str, float | int | None]) -> None:
        self._best = state["best"]
        self._stale = int(state["stale"] or 0)
