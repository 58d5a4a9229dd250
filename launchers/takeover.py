"""The lease of a job that SLURM knows to be over is taken from it, so that the next link need not wait for it.

A job that was killed cannot release its lease, and its heartbeat looks fresh for a while. A rank of it may even be
alive, on a node that was cut off from SLURM but not from the disk: the higher token tells it, and every reader of the
run's files, that it holds the lease no longer.
"""

import fcntl
import os
from pathlib import Path

from core.runfiles import LEASE, write_json
from launchers.ledger import holder
from launchers.slurm_queue import OVER, job_facts


def take_over(directory: Path) -> bool:
    """Release the lease on behalf of a job that is over; whether that was necessary."""
    descriptor = os.open(directory / f".{LEASE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a job that takes the lease does
        lease = holder(directory)
        if lease is None or not is_over(str(lease.get("job_id"))):
            return False
        write_json(directory / LEASE, {**lease, "token": lease["token"] + 1, "heartbeat": 0.0})
        print(f"baton: job {lease['job_id']} on {lease['host']} is over, and held the run: its lease is taken")
        return True
    finally:
        os.close(descriptor)


def is_over(job: str) -> bool:
    """Whether SLURM says that a job has ended; False where it does not say."""
    if not job.isdigit():
        return False
    if job == os.environ.get("SLURM_JOB_ID"):
        return True  # this very job, before SLURM started it again
    facts = job_facts(job)
    return facts is not None and (not facts or facts.get("JobState") in OVER)
