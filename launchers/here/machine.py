"""What this machine and its cluster offer, found without torch: GPUs, cores, and whether SLURM answers.

`python -m launchers.here.machine` prints the number of GPUs, for run.sh.
"""

import os
import shutil
import subprocess
from pathlib import Path

ANSWER_TIMEOUT_S = 5.0


def has_nvidia_gpu() -> bool:
    """Tell whether the NVIDIA driver is loaded here."""
    return Path("/proc/driver/nvidia/version").exists() or bool(visible_gpus())


def visible_gpus() -> list[str]:
    """List the GPUs that a process started now would see: those of CUDA_VISIBLE_DEVICES, else all of this machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    listing = _answer("nvidia-smi", "-L")
    return [str(number) for number, _ in enumerate(line for line in listing.splitlines() if line.startswith("GPU "))]


def num_cores() -> int:
    """Return how many cores this process may use (a job or container may own fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slurm_answers() -> bool:
    """Tell whether jobs can be submitted: `sbatch` is here and a controller answers. Installed is not enough."""
    return shutil.which("sbatch") is not None and " is UP" in _answer("scontrol", "ping")


def slurm_offers_gpus() -> bool:
    """Tell whether this is a login node of a cluster with GPUs, so that jobs will want the CUDA build of torch."""
    return "gpu" in _answer("sinfo", "--noheader", "--format=%G")


def _answer(*command: str) -> str:
    """Return what a command prints; empty if it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""


if __name__ == "__main__":
    print(len(visible_gpus()))
