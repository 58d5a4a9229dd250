"""One link of a run as its directory knows it: number and token, lease, entries in the ledger, the end."""

import hashlib
import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from core.distributed import Ranks
from core.report.report import write_report
from core.rundir.environment import (
    ENV_RUNS,
    is_started_by_run_sh,
    job_from_environment,
    link_from_environment,
    ranks_of_torchrun,
    runs_root,
)
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CONFIG, DONE, STOP
from core.rundir.lease import Lease
from core.rundir.ledger import next_number, rank_files, read_links, record_link
from core.rundir.whole_files import write_whole
from core.timing.phases import Phases

logger = logging.getLogger(__name__)


class RunStopped(RuntimeError):  # noqa: N818 - a wish of a person, not a fault
    """The error of a run that a person cancelled, which nobody has lifted."""

    exit_code = ExitCode.CONTINUE


class RunningLink:
    """The link at work. Rank 0 holds the lease and writes; the other ranks know number and token."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        number, self._seed = link_from_environment()
        self.number = number or 0
        self.token = 0
        self.phases = Phases()
        self._lease: Lease | None = None

    @property
    def rank_files(self) -> Path:
        return rank_files(self._directory, self.number)

    def begin(self, ranks: Ranks) -> None:
        """Take the lease; all ranks together. LeaseHeld, RunStopped or OSError on all of them where there is none."""
        problem: Exception | None = None
        if ranks.is_first:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                lease = Lease(self._directory, job_id=job_from_environment())
                self._leave_if_stopped(lease)
                self._lease, self.token = lease, lease.token
                self.number = self.number or next_number(read_links(self._directory))
            except (RuntimeError, OSError) as error:  # the others must hear of it before anyone leaves
                problem = error
        problem, self.token, self.number = ranks.from_first((problem, self.token, self.number))
        if problem is not None:
            raise problem

    def _leave_if_stopped(self, lease: Lease) -> None:
        """Raise RunStopped where STOP is there: no link gets past it, whoever started it."""
        stop = self._directory / STOP
        if stop.exists():
            lease.release()
            because, name = stop.read_text(encoding="utf-8").strip(), self._directory.name
            raise RunStopped(f"run {name} was {because}; ./launch.sh extend {name} lifts that, or remove {stop}")

    def record_start(self, *, step: int) -> None:
        """Record, on rank 0, where this link goes on, and with which configuration."""
        facts: dict[str, Any] = {"job_id": job_from_environment(), "host": socket.gethostname(), "pid": os.getpid()}
        facts |= {"token": self.token, "step": step, "seed": self._seed}
        facts["config_hash"] = hashlib.sha256((self._directory / CONFIG).read_bytes()).hexdigest()[:16]
        record_link(self._directory, event="started", link=self.number, **facts)

    def end(self, code: ExitCode, reason: str, *, step: int | None = None) -> ExitCode:
        """Write ledger, report, marker, lease: in this order, so that DONE is never there without what it promises.

        Where the run is to go on, the lease is released before the report: a job that is told to leave may be killed
        while it draws, and the next link need not wait.

        `step`: the last one done; None where the link failed in the one that is at work. On the rank that holds the
        lease, or the one that speaks for all when they hang. What cannot be written makes a good end a bad one.
        """
        if self._lease is None and code != ExitCode.HANG:
            return code
        if self._lease is not None and not self._lease.is_held:  # a report, a marker would be the other job's
            code, reason = ExitCode.LEASE, "another job has taken the run over"
        wall_s = time.time() - psutil.Process().create_time()
        facts: dict[str, Any] = {
            "exit_code": int(code),
            "reason": reason,
            "step": self.phases.current.step if step is None else step,
            "token": self.token,
            "train_s": round(self.phases.train_s, 3),
            "wall_s": round(wall_s, 3),
        }
        try:
            record_link(self._directory, event="ended", link=self.number, **facts)
            if code == ExitCode.CONTINUE and self._lease is not None:
                self._lease.release()
            if code in (ExitCode.DONE, ExitCode.CONTINUE):
                self._write_report()
            if code == ExitCode.DONE:
                write_whole(self._directory / DONE, f"step {facts['step']}\n")
        except OSError as error:
            logger.error("the end of the link cannot be recorded: %s", error)
            code = ExitCode.STORAGE if code in (ExitCode.DONE, ExitCode.CONTINUE) else code
        if self._lease is not None:
            self._lease.release()
        return code

    def _write_report(self) -> None:
        try:
            write_report(self._directory)
        except Exception:  # a picture less is no reason to fail a link
            logger.exception("the report could not be written")


def restart_command(world_size: int) -> str | None:
    """Return what to type where this process was started; None where a launcher, srun or many nodes know better."""
    words = sys.orig_argv
    by_torchrun = ranks_of_torchrun() == world_size
    if link_from_environment()[0] is not None or "-m" not in words or (world_size > 1 and not by_torchrun):
        return None
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    settings = {} if runs_root() == Path("runs").absolute() else {ENV_RUNS: str(runs_root())}
    if is_started_by_run_sh():
        settings["NPROC"] = str(world_size)
        command = ["./run.sh", module.removesuffix(".train").replace(".", "/")]
    elif by_torchrun:
        command = ["torchrun", "--standalone", "--nproc-per-node", str(world_size), "-m", module]
    else:
        command = [words[0], "-m", module]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return " ".join([*assignments, shlex.join([*command, *arguments])])
