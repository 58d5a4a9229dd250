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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from core.bench.settings import TelemetryConfig
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
Rows = Sequence[Sequence[str]]


@contextmanager
def recorded(run_dir: Path, config: TelemetryConfig, *, pid: int) -> Iterator[None]:
    """Write both tables of a run, whose launched process is `pid`, while the context lasts."""
    psutil.cpu_times_percent()  # the first answer is of no interval
    host = partial(sample_host, pid, run_dir)
    gpu_every_s, host_every_s = config.gpu_every_s if config.gpu else None, config.host_every_s if config.host else None
    with (
        sampled(run_dir / GPU, GPU_COLUMNS, sample_gpus, every_s=gpu_every_s),
        sampled(run_dir / HOST, HOST_COLUMNS, host, every_s=host_every_s),
    ):
        yield


@contextmanager
def sampled(
    path: Path, columns: Sequence[str], sample: Callable[[], Rows | None], *, every_s: float | None
) -> Iterator[None]:
    """Append what `sample` returns, behind the time, to a table while the context lasts, until it returns None.

    `every_s` None writes the header alone.
    """
    ended = threading.Event()

    def append(rows: Rows) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{','.join(row)}\n" for row in rows))

    def work() -> None:
        rows: Rows | None = ()
        while rows is not None and not ended.is_set():
            try:
                now = time.time()
                rows = sample()
                append([(time.strftime("%FT%TZ", time.gmtime(now)), f"{now:.3f}", *row) for row in rows or ()])
            except (OSError, ValueError, psutil.Error) as error:
                logger.warning("no sample for %s: %s", path.name, error)
            ended.wait(every_s)

    with contextlib.suppress(OSError):
        append([columns])
    thread = threading.Thread(target=work, name=path.stem, daemon=True)
    if every_s is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if every_s is not None:
            thread.join()


def sample_gpus() -> Rows | None:
    """Return a row a GPU; None where there is none, or no driver: it will not come back."""
    found = ask_nvidia_smi(tuple(GPU_QUERY.values()))
    return None if found is None else [[cell.replace(",", " ") for cell in row] for row in found]


def sample_host(pid: int, run_dir: Path) -> Rows:
    """Return load and memory of this host, and what the run's processes on it hold."""
    cpu, memory, swap = psutil.cpu_times_percent(), psutil.virtual_memory(), psutil.swap_memory()
    rss = 0
    for process in run_processes(pid, run_dir):
        with contextlib.suppress(psutil.Error):  # it has ended
            rss += process.memory_info().rss
    sizes = (memory.total, memory.available, memory.used, swap.total, swap.free, rss)
    loads = [f"{load:.2f}" for load in os.getloadavg()]
    percents = [f"{percent:.1f}" for percent in (cpu.user, cpu.system, cpu.idle)]
    return [[*loads, *percents, *(str(size // 1024) for size in sizes)]]


def run_processes(pid: int, run_dir: Path) -> list[psutil.Process]:
    """Return the launched process and all below it, and the ranks that srun has started here, which are not below."""
    found = {process.pid: process for process in _tree(pid)}
    started = [event for event in read_events(run_dir) if event["event"] == "started"]
    if started and started[-1].get("host") == socket.gethostname() and started[-1]["pid"] not in found:
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(started[-1]["pid"]).parent()  # SLURM's daemon of the step
            found |= {process.pid: process for process in _tree(parent.pid)} if parent and parent.pid > 1 else {}
    return list(found.values())


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []
