"""`cancel`: a marker that no link gets past, the queued links removed, the running one asked to save and stop."""

import getpass
import os
import signal
import socket
from pathlib import Path

from core.rundir.files import DONE, STOP
from core.rundir.lease import find_holder
from core.rundir.ledger import LinkRecord, read_links
from core.rundir.whole_files import now, write_whole
from launchers.chain.sweep_file import sweep_runs
from launchers.runs import find_run
from launchers.slurm.commands import cancel_jobs
from launchers.slurm.queue import active, job_facts, read_queue, slurm_jobs


def cancel(name: str) -> None:
    """Stop a run, or all of a sweep, for good, until `extend` lifts it. What is finished is left as it is."""
    for run in sweep_runs(name) or [find_run(name)]:
        _cancel(run, run.name)


def _cancel(run: Path, name: str) -> None:
    if (run / DONE).exists():
        print(f"run {name} is done: nothing to cancel")
        return
    write_whole(run / STOP, f"cancelled by {getpass.getuser()} at {now()}\n")
    links = read_links(run)
    num_asked = _cancel_jobs(links) + _stop_holder(run, links)
    print(f"run {name} is cancelled" + ("; it saves and stops" if num_asked else ""))
    print(f"take it up again with: ./launch.sh extend {name} -n 1")


def _cancel_jobs(links: list[LinkRecord]) -> int:
    """Remove waiting SLURM jobs and signal running ones; return how many were running."""
    jobs = slurm_jobs(links)
    if not jobs:
        return 0
    queue = active(read_queue(links), links)
    running = [job for job, state in queue.items() if state == "RUNNING"]
    # The rest is named although squeue may have said nothing: SLURM leaves alone what does not wait.
    waiting = [job for job in jobs if job not in running]
    problems = [
        cancel_jobs(waiting, options=["--quiet", "--state=PENDING"]),
        cancel_jobs(running, options=["--signal=USR1"]),
    ]
    for problem in filter(None, problems):
        print(f"warning: scancel: {problem}")
        print("the mark is set all the same: links that wait end as soon as they start; one at work goes on")
    return len(running) if problems[1] is None else 0


def _stop_holder(run: Path, links: list[LinkRecord]) -> int:
    """Ask the rank 0 at work to save and stop where no link of the launcher does; return 1 if one hears it.

    On this machine by its process, elsewhere by its SLURM job: somebody typed `sbatch FILE.sub`.
    """
    lease = find_holder(run)
    on_slurm = {job for link in links if link.is_on_slurm for job in (link.job_id, link.started.get("job_id"))}
    if lease is None or lease.get("job_id") in on_slurm:
        return 0
    job, host = str(lease.get("job_id")), str(lease["host"])
    if host == socket.gethostname():
        os.kill(int(lease["pid"]), signal.SIGTERM)
        return 1
    facts = (job_facts(job) or {}) if job.isdigit() else {}
    if facts.get("BatchHost", "").partition(".")[0] != host.partition(".")[0]:  # another job with the same number
        print(f"warning: {job} on {host} is at work and goes on; stop it there")
        return 0
    problem = cancel_jobs([job], options=["--signal=USR1"])
    if problem is not None:
        print(f"warning: scancel: {problem}\njob {job} on {host} is at work and goes on")
    return int(problem is None)
