"""Processes of this host: whether one still lives, who asked this one to stop, and what it holds in memory."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Mapping
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any

import psutil

GIB = 2**30
SAMPLE_EVERY_S = 5.0  # a sample takes about 10 ms a GiB
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def find_process(pid: int, *, started: float) -> psutil.Process | None:
    """Return the living process `pid` that began at `started`; None if it is gone: numbers are used again."""
    process = _living(pid)
    return process if process is not None and abs(process.create_time() - started) < 1.0 else None


def find_writer(event: Mapping[str, Any]) -> psutil.Process | None:
    """Return the living process of this host that wrote an event of the ledger (`host`, `pid`, `time`); else None."""
    if event.get("host") != socket.gethostname() or not isinstance(event.get("pid"), int):
        return None
    process = _living(event["pid"])
    written = datetime.fromisoformat(event["time"]).timestamp() + 1.0  # it is told in whole seconds
    return process if process is not None and process.create_time() < written else None


def session_members(leader: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # ended meanwhile
            if os.getsid(pid) == leader and _living(pid) is not None:
                found.append(pid)
    return found


def _living(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        # A zombie is dead, and its parent has not looked yet.
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


class StopRequests:
    """A count of the Ctrl-C (or TERM, HUP, USR1) that a process gets while this context lasts, instead of dying."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        self._before = {number: signal.signal(number, self._note) for number in STOPS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def memory_gib() -> float:
    """Return what this process and its workers hold: each alone, plus its share of what they hold together."""
    me = psutil.Process()
    held = 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # a worker may have ended
            held += _held_bytes(process)
    return held / GIB


def _held_bytes(process: psutil.Process) -> int:
    """Return the proportional set size where the kernel tells it, else the resident one, with shared pages twice."""
    try:
        return int(process.memory_full_info().pss)
    except (AttributeError, psutil.AccessDenied):
        return int(process.memory_info().rss)


class PeakMemory:
    """A context in which a thread looks at `memory_gib` every few seconds, also while batches are validated."""

    def __init__(self) -> None:
        self._peak_gib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def read_gib(self) -> float:
        """Return the largest sample so far."""
        if not self._peak_gib:
            self._peak_gib = memory_gib()
        return self._peak_gib

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self._peak_gib = max(self._peak_gib, memory_gib())
