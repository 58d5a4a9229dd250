"""A run as a session of processes: started apart, and ended with everything that it has started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from core.rundir.processes import StopRequests, session_members

POLL_S = 0.2


def start_session(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], folder: Path
) -> "subprocess.Popen[bytes]":
    """Start a process that leads a session of its own, so that Ctrl-C reaches only us; what it prints goes to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def end_session(leader: int, *, grace_s: float, stops: StopRequests | None = None) -> None:
    """Ask all processes of a session to leave, and kill what is left of it after `grace_s`, or another request."""
    requests = stops.count if stops else 0
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while found := session_members(leader):
        if time.monotonic() > deadline or (stops and stops.count > requests):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S / 2)


def is_still_led(leader: int, *, created: float) -> bool:
    """Tell whether a session is the one whose leader was born at `created`: a number is used again.

    While a session has members its number is not; so without a leader its members are its own.
    """
    try:
        return abs(psutil.Process(leader).create_time() - created) < 1.0
    except psutil.NoSuchProcess:
        return bool(session_members(leader))
