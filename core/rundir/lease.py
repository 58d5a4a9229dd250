"""The lease of a run directory: one job at a time may write, and its token tells its records from an older job's."""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from core.rundir.files import (
    CHECKPOINTS,
    LEASE,
    ExitCode,
    now,
    read_json,
    read_lineage,
    write_json,
)
from core.rundir.processes import find_process

HEARTBEAT_S = 15.0
STALE_S = 90.0


class LeaseHeld(RuntimeError):  # noqa: N818 - a state of the run, not a fault
    """Another job is at work in the run directory."""

    exit_code = ExitCode.LEASE


class Lease:
    """Held by rank 0 of a job while it trains; `token` grows by one with every holder."""

    def __init__(self, directory: Path, *, job_id: str) -> None:
        """Take the lease or raise LeaseHeld, naming the holder."""
        self._path = directory / LEASE
        with _guarded(directory):
            holder = self._read()
            if holder and _is_alive(holder):
                raise LeaseHeld(
                    f"{directory} is in use by job {holder['job_id']} on {holder['host']} (process {holder['pid']}, "
                    f"last seen {holder['seen']}); wait for it, or cancel it, or choose another run.name"
                )
            # A lease that was removed, or checkpoints that were copied, must not make an old job of a new one.
            self.token = 1 + max((holder or {}).get("token", 0), *read_lineage(directory / CHECKPOINTS), 0)
            process = psutil.Process()
            self._record = {
                "token": self.token,
                "job_id": job_id,
                "host": socket.gethostname(),
                "pid": process.pid,
                "started": process.create_time(),
            }
            self._beat()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def is_held(self) -> bool:
        """False once another job has taken the run over: then nothing that is written here counts."""
        return not is_fenced(self._path.parent, token=self.token)

    def release(self) -> None:
        """Let the next job in at once."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError), _guarded(self._path.parent):  # else the next job sees that this process is gone
            if self.is_held:
                write_json(self._path, {**self._record, "seen": now(), "heartbeat": 0.0})

    def _keep(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(OSError), _guarded(self._path.parent):  # a full disk may have room again at the next beat
                if not self.is_held:
                    return
                self._beat()

    def _beat(self) -> None:
        write_json(self._path, {**self._record, "seen": now(), "heartbeat": time.time()})

    def _read(self) -> dict[str, Any] | None:
        return read_json(self._path) if self._path.exists() else None


def is_fenced(directory: Path, *, token: int) -> bool:
    """Whether a later job than the one with this token has taken over the run."""
    path = directory / LEASE
    return path.exists() and read_json(path)["token"] > token


def _is_alive(holder: dict[str, Any]) -> bool:
    """On this host the process itself is asked; elsewhere the heartbeat must be recent."""
    if holder["heartbeat"] == 0.0:
        return False
    if holder["host"] == socket.gethostname():
        return find_process(holder["pid"], started=holder["started"]) is not None
    return time.time() - holder["heartbeat"] < STALE_S


@contextmanager
def _guarded(directory: Path) -> Iterator[None]:
    """Between two jobs that start at the same moment, one looks first."""
    descriptor = os.open(directory / f".{LEASE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
