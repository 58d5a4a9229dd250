"""What one rank of a job finds on its node: started by `./launch.sh preflight`, with the resources of a .sub file.

    srun python -m core.job.node_probe FOLDER SECONDS

FOLDER/asked.json names the packages whose versions are wanted, the paths to look for, in words, and the precision.
Each rank writes FOLDER/rank_K.json when it starts, when the ranks have met and measured their collectives, and when
it got a stop signal (or none came in SECONDS). The launcher sends that signal and judges what it reads.
"""

import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from core import distributed
from core.distributed import Ranks
from core.numerics import all_kernels, faults
from core.parallel.settings import resolve_precision
from core.rundir.environment import runs_root, slurm_job
from core.rundir.whole_files import read_json, write_json
from core.signals import STOP_SIGNALS

NUM_FLOATS = 4 * 2**20  # 16 MiB, about a bucket of gradients
NUM_REDUCTIONS = 5


def main() -> int:
    folder, wait_s = Path(sys.argv[1]), float(sys.argv[2])
    got: list[str] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
    rank, _, _ = distributed.place()
    path = folder / f"rank_{rank}.json"
    asked = read_json(folder / "asked.json")
    absent = [words for words, name in asked["paths"].items() if not Path(name).exists()]
    report: dict[str, Any] = {**_machine(rank, asked["packages"]), "absent": absent, "phase": "started"}
    write_json(path, report)
    with distributed.joined() as ranks:
        report |= {"phase": "met", "world_size": ranks.world_size, "device": str(ranks.device)}
        report["gigabytes_per_s"] = _bandwidth(ranks)
        in_bf16 = resolve_precision(asked["precision"], ranks) == "bf16"
        dtypes = [torch.float32, torch.bfloat16][: 1 + in_bf16]
        report["wrong_kernels"] = faults(all_kernels(), dtypes=dtypes, device=ranks.device)
        ranks.barrier()
        report["clock"] = time.time()  # of all ranks at one moment
        write_json(path, report)
        deadline = time.monotonic() + wait_s
        while not got and time.monotonic() < deadline:
            time.sleep(0.05)
        report |= {"phase": "ended", "signal": got[0] if got else None}
        write_json(path, report)
    return 0


def _machine(rank: int, packages: Sequence[str]) -> dict[str, Any]:
    """Return facts about the node, what is installed there, and what can be seen and written from it."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "rank": rank,
        "node": socket.gethostname(),
        "pid": os.getpid(),
        "job": slurm_job(),
        "versions": versions,
        "gpus": gpus,
        "free_gib": shutil.disk_usage(runs_root()).free / 2**30,
        "clock": time.time(),
    }


def _bandwidth(ranks: Ranks) -> float | None:
    """Return the bytes that an all-reduce adds up a second, as seen by one rank; None for a rank alone."""
    if ranks.world_size == 1:
        return None
    data = torch.ones(NUM_FLOATS, device=ranks.device)
    dist.all_reduce(data)  # the first one makes the connections
    _wait_for(ranks.device)
    began = time.perf_counter()
    for _ in range(NUM_REDUCTIONS):
        dist.all_reduce(data)
    _wait_for(ranks.device)
    return NUM_REDUCTIONS * 4 * NUM_FLOATS / (time.perf_counter() - began) / 1e9


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
