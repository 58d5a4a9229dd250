"""A chain: the consecutive links of one run, queued on SLURM or done one after another on this machine."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.rundir.files import (
    FAILED,
    LOGS,
    STOP,
    ExitCode,
    record_link,
    write_whole,
)
from core.rundir.ledger import newest_step, read_links
from launchers.chain.code_version import code_version
from launchers.chain.submission import Run, local_tasks, submit_to_slurm
from launchers.chain.verdict import Outcome, reason_to_stop
from launchers.here.environment import ROOT
from launchers.here.local_link import DebugLink, LocalLink, StopRequests
from launchers.runs import LaunchError
from launchers.show.results import print_results
from launchers.slurm.commands import SlurmError
from launchers.slurm.link import finish
from launchers.slurm.refusal import LAUNCHER_LOCK, refusal


def next_link(directory: Path) -> int:
    """Links are numbered from 1 over the whole life of a run."""
    return max((link.number for link in read_links(directory)), default=0) + 1


def record_submission(run: Run, link: int, *, first: int, job_id: str, log: Path) -> None:
    """The ledger's `submitted` event: enough to repeat the link. `first`: the first link of its launch."""
    commit, dirty = code_version(ROOT)
    record_link(
        run.directory,
        event="submitted",
        link=link,
        job_id=job_id,
        seed=run.seed(link),
        argv=[str(run.header.path), *run.arguments()],
        commit=commit,
        dirty=dirty,
        cluster=run.cluster,
        seed_base=run.seed_base,
        log=os.path.relpath(log, run.directory),
        code=str(run.code),
        first_link=first,
        gate=run.gate,
    )


def queue_on_slurm(run: Run, num_links: int, *, after: str | None, keep_queued: bool = False) -> list[tuple[int, str]]:
    """Submit all links, each to start when the one before has ended in whatever way: (link, job) of each.

    All or none, unless `keep_queued`. LaunchError with sbatch's words where it refuses one.
    """
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "ERROR")  # the log is for the run's own words
    first = next_link(run.directory)
    queued: list[tuple[int, str]] = []
    for link in range(first, first + num_links):
        try:
            job_id = submit_to_slurm(run, link, after=after)
        except SlurmError as error:
            raise LaunchError(refusal(run.directory, link, queued, error=error, is_kept=keep_queued)) from None
        except KeyboardInterrupt:
            nothing = SlurmError("nothing, as Ctrl-C came first")
            raise LaunchError(refusal(run.directory, link, queued, error=nothing, is_kept=keep_queued)) from None
        record_submission(run, link, first=first, job_id=job_id, log=run.log_folder(link) / f"{job_id}_0_log.out")
        queued.append((link, job_id))
        waits = f", after {after}" if after else ""
        print(f"  link {link}: job {job_id}, seed {run.seed(link)}{waits}", flush=True)
        after = job_id
    return queued


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """One launcher at a time works on a run, or queues links of it. LaunchError if there is one already."""
    (directory / LOGS).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOGS / LAUNCHER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchError(
                f"another launcher is at work on this run; see it with: ./launch.sh logs {directory.name} -f",
                exit_code=ExitCode.LEASE,
            ) from None
        yield
    finally:
        os.close(descriptor)


def say_what_to_type(name: str) -> None:
    """The commands that a person wants after a chain is queued."""
    print(f"look with   ./launch.sh status {name}\nread with   ./launch.sh logs {name} -f")
    print(f"stop with   ./launch.sh cancel {name}")


def work_here(run: Run, num_links: int) -> int:
    """Do the links one after another, with their output shown live. The exit code of the chain."""
    notice = local_tasks(run.header)[1]
    if notice:
        print(f"baton: {notice}")
    outcomes: list[Outcome] = []
    with alone(run.directory), StopRequests() as stops:
        first = next_link(run.directory)
        for link in range(first, first + num_links):
            work = DebugLink(run, link) if run.cluster == "debug" else LocalLink(run, link)
            record_submission(run, link, first=first, job_id=work.job_id, log=work.log)
            print(f"== link {link} ({link - first + 1} of {num_links}), seed {run.seed(link)}, log {_short(work.log)}")
            outcomes.append(work.wait(stops))
            print(f"== link {link} ended at step {outcomes[-1].resume_at}: {outcomes[-1].words}", flush=True)
            finish(run.directory, outcomes[-1].exit_code)
            if stops.count or outcomes[-1].exit_code == ExitCode.DONE or (run.directory / STOP).exists():
                break
            reason = reason_to_stop(outcomes)
            if reason is not None:
                return _fail(run, reason, outcomes[-1])
    if outcomes[-1].exit_code == ExitCode.DONE:
        print_results(run.directory)
        return int(ExitCode.DONE)
    if (run.directory / STOP).exists():
        print(f"baton: the run was cancelled; to go on after all: ./launch.sh extend {run.directory.name} -n 1")
        return int(ExitCode.CONTINUE)
    print(f"baton: the run can go on from step {newest_step(run.directory)} with: {continue_command(run)}")
    return int(ExitCode.CONTINUE)


def continue_command(run: Run) -> str:
    return f"./launch.sh -n 1 --run {run.directory.name} {_short(run.header.path)}"


def _fail(run: Run, reason: str, last: Outcome) -> int:
    if last.exit_code != ExitCode.LEASE:  # then another job is at work, and the run is well
        write_whole(run.directory / FAILED, reason + "\n")
    print(f"baton: the chain stops: {reason}", file=sys.stderr)
    print(f"baton: when that is mended, go on with: {continue_command(run)}", file=sys.stderr)
    return last.exit_code or int(ExitCode.BUG)


def _short(path: Path) -> Path:
    """Relative to the current directory where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
