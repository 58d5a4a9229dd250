"""Processes of this host: whether one still lives, and what this one and its loader workers hold in memory."""

import contextlib
import threading
from types import TracebackType

import psutil

GIB = 2**30
SAMPLE_EVERY_S = 5.0  # a sample takes about 10 ms a GiB


def find_process(pid: int, *, started: float) -> psutil.Process | None:
    """The living process `pid` that began at `started`; None if it is gone: numbers are used again."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # dead, and its parent has not looked yet
            return None
        return process if abs(process.create_time() - started) < 1.0 else None
    except psutil.NoSuchProcess:
        return None


def memory_gib() -> float:
    """Of this process and its workers: what each holds alone plus its share of what they hold together."""
    me = psutil.Process()
    held = 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # a worker may have ended
            held += _held_bytes(process)
    return held / GIB


def _held_bytes(process: psutil.Process) -> int:
    """The proportional set size where the kernel tells it, else the resident one, which counts shared pages twice."""
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
        """The largest sample so far."""
        if not self._peak_gib:
            self._peak_gib = memory_gib()
        return self._peak_gib

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self._peak_gib = max(self._peak_gib, memory_gib())
