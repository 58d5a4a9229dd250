"""`cancel`: a marker that no link gets past, the queued links removed, the running one asked to save and stop."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from core.runfiles import DONE, STOP, now, write_whole
from launchers.ledger import Link, holder, read_links
from launchers.runs import find_run
from launchers.status import slurm_queue

SCANCEL_TIMEOUT_S = 30.0


def cancel(name: str) -> None:
    """Stop a run for good, until `extend` lifts it. A finished run is left as it is."""
    run = find_run(name)
    if (run / DONE).exists():
        print(f"run {name} is done: nothing to cancel")
        return
    write_whole(run / STOP, f"cancelled by {getpass.getuser()} at {now()}\n")
    num_asked = _cancel_jobs(read_links(run)) + _stop_here(run)
    print(f"run {name} is cancelled" + ("; it saves and stops" if num_asked else ""))
    print(f"take it up again with: ./launch.sh extend {name} -n 1")


def _cancel_jobs(links: list[Link]) -> int:
    """Remove waiting SLURM jobs and signal running ones; how many were running."""
    queue = slurm_queue(links)
    running = [job for job, state in queue.items() if state == "RUNNING"]
    waiting = [job for job in queue if job not in running]
    if waiting:
        _scancel(*waiting)
    if running:
        _scancel("--signal=USR1", *running)
    return len(running)


def _scancel(*arguments: str) -> None:
    if shutil.which("scancel"):
        subprocess.run(["scancel", *arguments], timeout=SCANCEL_TIMEOUT_S, check=False)


def _stop_here(run: Path) -> int:
    """Ask the rank 0 that works on this machine to save and stop; 1 if there is one."""
    lease = holder(run)
    if lease is None or lease["host"] != socket.gethostname() or lease.get("job_id") in _slurm_jobs(run):
        return 0
    os.kill(int(lease["pid"]), signal.SIGTERM)
    return 1


def _slurm_jobs(run: Path) -> set[str | None]:
    return {link.job_id for link in read_links(run) if link.submitted.get("cluster") == "slurm"}
