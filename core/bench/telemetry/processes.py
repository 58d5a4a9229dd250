"""A run as a session of processes: started apart, watched, and ended with everything that it has started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from core.rundir.processes import session_members

POLL_S = 0.2
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopRequest:
    """A context in which a stop signal sets a flag; a second Ctrl-C shortens the run's time to leave to nothing."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in STOPS}
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.count > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def start(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], folder: Path
) -> "subprocess.Popen[bytes]":
    """A process that leads a session of its own, so that Ctrl-C reaches only us; its words go to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_session(leader: int, *, grace_s: float, hurry: StopRequest | None = None) -> None:
    """Ask all processes of a session to leave, and kill what is left of it after `grace_s`, or a second request."""
    requests = 0 if hurry is None else hurry.count
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while session_members(leader) and time.monotonic() < deadline and (hurry is None or hurry.count == requests):
        time.sleep(POLL_S / 2)
    while found := session_members(leader):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S / 2)


def is_still_led(leader: int, *, created: float) -> bool:
    """Whether a session is the one whose leader was born at `created`: a number is used again.

    While a session has members its number is not; so without a leader its members are its own.
    """
    try:
        return abs(psutil.Process(leader).create_time() - created) < 1.0
    except psutil.NoSuchProcess:
        return bool(session_members(leader))
