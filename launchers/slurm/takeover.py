"""The lease of a job that SLURM knows to be over is taken from it, so that the next link need not wait for it.

A job that was killed cannot release its lease, and its heartbeat looks fresh for a while. A rank of it may even be
alive, on a node that was cut off from SLURM but not from the disk: the higher token tells it, and every reader of the
run's files, that it holds the lease no longer. Where SLURM does not say, the heartbeat does: it goes on, or gets stale.
"""

import socket
import time
from pathlib import Path

from core.rundir.environment import slurm_job
from core.rundir.lease import STALE_S, take_from_dead
from launchers.slurm.queue import OVER, job_facts

WAIT_S = STALE_S
POLL_S = 5.0
_pause = time.sleep


def take_over(directory: Path) -> bool:
    """Release the lease on behalf of a job that is over; return whether that was necessary.

    A holder on another host of which nobody knows whether it lives is watched until it shows, or is stale.
    """
    deadline, seen = time.monotonic() + WAIT_S, None
    while True:
        lease, has_ended = take_from_dead(directory, has_ended=is_over)
        if lease is not None and has_ended:
            print(f"baton: job {lease['job_id']} on {lease['host']} is over, and held the run: its lease is taken")
        if lease is None or has_ended is not None or lease["host"] == socket.gethostname():
            return bool(has_ended)
        if seen is None:
            print(
                f"baton: does job {lease['job_id']} on {lease['host']} live, which holds the run? Watching", flush=True
            )
        elif lease["heartbeat"] != seen:
            return False
        if time.monotonic() >= deadline:
            return False
        seen = lease["heartbeat"]
        _pause(POLL_S)


def is_over(job: str) -> bool | None:
    """Tell whether SLURM says that a job has ended; None where it does not say."""
    if not job.isdigit():
        return None
    if job == slurm_job():
        return True  # this very job, before SLURM started it again
    facts = job_facts(job)
    return None if facts is None else not facts or facts.get("JobState") in OVER
