"""The lease of a job that SLURM knows to be over is taken from it, so that the next link need not wait for it.

A job that was killed cannot release its lease, and its heartbeat looks fresh for a while. A rank of it may even be
alive, on a node that was cut off from SLURM but not from the disk: the higher token tells it, and every reader of the
run's files, that it holds the lease no longer. Where SLURM does not say, the heartbeat does: it goes on, or gets stale.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any

from core.rundir.files import LEASE, write_json
from core.rundir.ledger import STALE_HEARTBEAT_S, holder
from launchers.slurm.queue import OVER, job_facts

WAIT_S = STALE_HEARTBEAT_S
POLL_S = 5.0
_pause = time.sleep


def take_over(directory: Path) -> bool:
    """Release the lease on behalf of a job that is over; whether that was necessary.

    A holder on another host of which nobody knows whether it lives is watched until it shows, or is stale.
    """
    deadline, seen = time.monotonic() + WAIT_S, None
    while True:
        lease, has_ended = _release(directory)
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


def _release(directory: Path) -> tuple[dict[str, Any] | None, bool | None]:
    """(the lease that stands in the way, whether its job has ended); it is released where it has."""
    descriptor = os.open(directory / f".{LEASE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a job that takes the lease does
        lease = holder(directory)
        has_ended = None if lease is None else is_over(str(lease.get("job_id")))
        if lease is not None and has_ended:
            write_json(directory / LEASE, {**lease, "token": lease["token"] + 1, "heartbeat": 0.0})
            print(f"baton: job {lease['job_id']} on {lease['host']} is over, and held the run: its lease is taken")
        return lease, has_ended
    finally:
        os.close(descriptor)


def is_over(job: str) -> bool | None:
    """Whether SLURM says that a job has ended; None where it does not say."""
    if not job.isdigit():
        return None
    if job == os.environ.get("SLURM_JOB_ID"):
        return True  # this very job, before SLURM started it again
    facts = job_facts(job)
    return None if facts is None else not facts or facts.get("JobState") in OVER
