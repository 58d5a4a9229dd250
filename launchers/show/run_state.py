"""One word for what a run is doing, from the markers, the lease, the ledger and SLURM's queue."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from core.rundir.exit_codes import ExitCode
from core.rundir.files import DONE, FAILED, STOP
from core.rundir.lease import find_holder
from core.rundir.ledger import LinkRecord


def state_of(run: Path, links: Sequence[LinkRecord], *, queue: Mapping[str, str]) -> str:
    """Return one word for a run. `queue`: SLURM's state of each job id that it still knows."""
    if (run / DONE).exists():
        return "done"
    if find_holder(run):
        return "running"
    waiting = {queue[link.job_id] for link in links if link.job_id is not None and link.job_id in queue}
    if (run / STOP).exists():
        return "cancelled"
    if (run / FAILED).exists():
        return "failed"
    if "RUNNING" in waiting:
        return "starting"
    if waiting:
        return "queued"
    ran = [link for link in links if link.started or (link.ended and link.has_run)]
    if not ran:
        return "not started" if links else "interrupted"
    if not ran[-1].ended:
        return "interrupted"
    return "paused" if ran[-1].exit_code == ExitCode.CONTINUE else "failed"
