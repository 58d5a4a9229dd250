"""What the hardware does during a run: gpu_telemetry.csv and host_telemetry.csv, sampled by threads.

Where there is no GPU, gpu_telemetry.csv is its header. A sample that fails is left out; the run never suffers from it.
On several nodes they are of the first one.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from core.bench.telemetry.machine import ask_nvidia_smi
from core.rundir.ledger import read_events

logger = logging.getLogger(__name__)

GPU = "gpu_telemetry.csv"
HOST = "host_telemetry.csv"
# A column, and what nvidia-smi calls it.
GPU_QUERY: Mapping[str, str] = {
    "gpu_index": "index",
    "gpu_uuid": "uuid",
    "gpu_name": "name",
    "temp_c": "temperature.gpu",
    "util_gpu_pct": "utilization.gpu",
    "util_mem_pct": "utilization.memory",
    "power_w": "power.draw",
    "sm_clock_mhz": "clocks.sm",
    "mem_clock_mhz": "clocks.mem",
    "mem_used_mib": "memory.used",
    "mem_total_mib": "memory.total",
}
GPU_COLUMNS = ("timestamp", "epoch_sec", *GPU_QUERY)
HOST_COLUMNS = tuple(
    "timestamp epoch_sec load1 load5 load15 cpu_user_pct cpu_system_pct cpu_idle_pct mem_total_kib mem_available_kib "
    "mem_used_kib swap_total_kib swap_free_kib rss_kib".split()
)


class Sampler:
    """A context in which `rows` is asked every `every_s` seconds, and what it gives is appended to a table."""

    columns: tuple[str, ...]

    def __init__(self, path: Path, *, every_s: float, is_on: bool) -> None:
        self._path, self._every_s, self._is_on = path, every_s, is_on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name=path.stem, daemon=True)

    def __enter__(self) -> "Sampler":
        with contextlib.suppress(OSError):
            self._append([self.columns])
        if self._is_on:
            self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._ended.set()
        if self._is_on:
            self._thread.join()

    def rows(self) -> list[tuple[str, ...]]:
        """One sample; without the columns for the time."""
        raise NotImplementedError

    def _sample(self) -> None:
        while not self._ended.is_set():
            try:
                now = time.time()
                stamp = (time.strftime("%FT%TZ", time.gmtime(now)), f"{now:.3f}")
                self._append([(*stamp, *row) for row in self.rows()])
            except (OSError, ValueError, psutil.Error) as error:
                logger.warning("no sample for %s: %s", self._path.name, error)
            self._ended.wait(self._every_s)

    def _append(self, rows: list[tuple[str, ...]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{','.join(row)}\n" for row in rows))


class GpuSampler(Sampler):
    """A row a GPU."""

    columns = GPU_COLUMNS

    def rows(self) -> list[tuple[str, ...]]:
        found = ask_nvidia_smi(tuple(GPU_QUERY.values()))
        if found is None:  # there is none, or no driver: it will not come back
            self._ended.set()
        return [tuple(cell.replace(",", " ") for cell in row) for row in found or []]


class HostSampler(Sampler):
    """Load and memory of this host, and what the run's processes on it hold."""

    columns = HOST_COLUMNS

    def __init__(self, path: Path, *, every_s: float, is_on: bool, pid: int, run_dir: Path) -> None:
        super().__init__(path, every_s=every_s, is_on=is_on)
        self._pid, self._run_dir = pid, run_dir
        psutil.cpu_times_percent()  # the first answer is of no interval

    def rows(self) -> list[tuple[str, ...]]:
        cpu, memory, swap = psutil.cpu_times_percent(), psutil.virtual_memory(), psutil.swap_memory()
        rss = sum(_rss_bytes(process) for process in run_processes(self._pid, self._run_dir))
        sizes = (memory.total, memory.available, memory.used, swap.total, swap.free, rss)
        return [
            (
                *(f"{load:.2f}" for load in os.getloadavg()),
                *(f"{percent:.1f}" for percent in (cpu.user, cpu.system, cpu.idle)),
                *(str(size // 1024) for size in sizes),
            )
        ]


def run_processes(pid: int, run_dir: Path) -> list[psutil.Process]:
    """The launched process and all below it, and the ranks that srun has started here, which are not below it."""
    found = {process.pid: process for process in _tree(pid)}
    started = [event for event in read_events(run_dir) if event["event"] == "started"]
    if started and started[-1].get("host") == socket.gethostname() and started[-1]["pid"] not in found:
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(started[-1]["pid"]).parent()  # SLURM's daemon of the step
            found |= {process.pid: process for process in _tree(parent.pid)} if parent and parent.pid > 1 else {}
    return list(found.values())


def _tree(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended
        return 0


def num_rows(path: Path) -> int:
    """Samples in a table."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return max(0, sum(1 for _ in file) - 1)
