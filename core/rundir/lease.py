"""The lease of a run directory: one job at a time may write, and its token tells its records from an older job's."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from core.rundir.checkpoints import read_lineage
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, LEASE, LEASE_LOCK
from core.rundir.processes import find_process
from core.rundir.whole_files import locked, now, read_json, write_json

HEARTBEAT_S = 15.0
STALE_S = 90.0  # without a heartbeat, a holder on another host is taken for dead


class LeaseHeld(RuntimeError):  # noqa: N818 - a state of the run, not a fault
    """Another job is at work in the run directory."""

    exit_code = ExitCode.LEASE


class Lease:
    """The right to write a run, which rank 0 of a job holds while it trains; `token` grows by one with every holder."""

    def __init__(self, directory: Path, *, job_id: str) -> None:
        """Take the lease or raise LeaseHeld, naming the holder."""
        self._path = directory / LEASE
        with locked(directory / LEASE_LOCK):  # of two jobs that start at the same moment one looks first
            holder = read_json(self._path) if self._path.exists() else None
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
        # Else the next job sees that this process is gone.
        with suppress(OSError), locked(self._path.with_name(LEASE_LOCK)):
            if self.is_held:
                write_json(self._path, {**self._record, "seen": now(), "heartbeat": 0.0})

    def _keep(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            # A full disk may have room again at the next beat.
            with suppress(OSError), locked(self._path.with_name(LEASE_LOCK)):
                if not self.is_held:
                    return
                self._beat()

    def _beat(self) -> None:
        write_json(self._path, {**self._record, "seen": now(), "heartbeat": time.time()})


def is_fenced(directory: Path, *, token: int) -> bool:
    """Tell whether a later job than the one with this token has taken over the run."""
    path = directory / LEASE
    return path.exists() and read_json(path)["token"] > token


def find_holder(directory: Path) -> dict[str, Any] | None:
    """Return the lease of the job that is at work in a run directory; None if none is, or it cannot be read."""
    try:
        lease: dict[str, Any] = read_json(directory / LEASE)
        return lease if _is_alive(lease) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def take_from_dead(
    directory: Path, *, has_ended: Callable[[str], bool | None]
) -> tuple[dict[str, Any] | None, bool | None]:
    """Release the lease on behalf of a holder whose job has ended; return (the lease of the holder, `has_ended` of it).

    The token grows: a rank of that job that is cut off, and not dead, learns that it holds the run no longer.
    """
    with locked(directory / LEASE_LOCK):
        lease = find_holder(directory)
        ended = None if lease is None else has_ended(str(lease.get("job_id")))
        if lease is not None and ended:
            write_json(directory / LEASE, {**lease, "token": lease["token"] + 1, "heartbeat": 0.0})
        return lease, ended


def _is_alive(lease: dict[str, Any]) -> bool:
    """Tell whether a job holds this lease: on this host by its process, elsewhere by a recent heartbeat."""
    if lease["heartbeat"] == 0.0:  # released
        return False
    if lease["host"] == socket.gethostname():
        return find_process(lease["pid"], started=lease["started"]) is not None
    return bool(time.time() - lease["heartbeat"] < STALE_S)
