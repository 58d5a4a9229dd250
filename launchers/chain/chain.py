"""A chain: the consecutive links of one run, queued on SLURM or done one after another on this machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.rundir.exit_codes import ExitCode
from core.rundir.files import FAILED, LAUNCHER_LOCK, LOGS, STOP
from core.rundir.ledger import newest_step, next_number, read_links, record_link
from core.rundir.processes import StopRequests
from core.rundir.repository import code_version
from core.rundir.whole_files import locked, write_whole
from launchers.chain.stop_rule import LinkOutcome, reason_to_stop
from launchers.chain.submission import LaunchedRun, local_tasks, submit_to_slurm
from launchers.here.environment import ROOT
from launchers.here.local_link import DebugLink, LocalLink
from launchers.runs import LaunchError
from launchers.show.results import print_results
from launchers.slurm.commands import SlurmError
from launchers.slurm.link import mark_done
from launchers.slurm.refusal import undo_submission


def record_submission(run: LaunchedRun, link: int, *, first: int, job_id: str, log: Path) -> None:
    """Write the ledger's `submitted` event: enough to repeat the link. `first`: the first link of its launch."""
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


def queue_on_slurm(
    run: LaunchedRun, num_links: int, *, first: int, after: str | None, keep_queued: bool = False
) -> list[tuple[int, str]]:
    """Submit all links from `first` on, each to start when the one before has ended in whatever way.

    Return (link, job) of each. All or none, unless `keep_queued`. LaunchError with sbatch's words where it refuses one.
    """
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "ERROR")  # the log is for the run's own words
    queued: list[tuple[int, str]] = []
    for link in range(first, first + num_links):
        try:
            job_id = submit_to_slurm(run, link, after=after)
        except (SlurmError, KeyboardInterrupt) as caught:
            error = caught if isinstance(caught, SlurmError) else SlurmError("nothing, as Ctrl-C came first")
            words = undo_submission(run.directory, link, queued, error=error, is_kept=keep_queued)
            raise LaunchError(words) from None
        record_submission(run, link, first=first, job_id=job_id, log=run.log_folder(link) / f"{job_id}_0_log.out")
        queued.append((link, job_id))
        waits = f", after {after}" if after else ""
        print(f"  link {link}: job {job_id}, seed {run.seed(link)}{waits}", flush=True)
        after = job_id
    return queued


@contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Keep other launchers from working on a run, or queueing links of it. LaunchError if there is one already."""
    (directory / LOGS).mkdir(parents=True, exist_ok=True)
    with locked(directory / LOGS / LAUNCHER_LOCK, waits=False) as is_held:
        if not is_held:
            words = f"another launcher is at work on this run; see it with: ./launch.sh logs {directory.name} -f"
            raise LaunchError(words, exit_code=ExitCode.LEASE)
        yield


def print_commands(name: str) -> None:
    """Print the commands that a person wants after a chain is queued."""
    print(f"look with   ./launch.sh status {name}\nread with   ./launch.sh logs {name} -f")
    print(f"stop with   ./launch.sh cancel {name}")


def run_locally(run: LaunchedRun, num_links: int) -> int:
    """Do the links one after another, with their output shown live; return the exit code of the chain."""
    notice = local_tasks(run.header)[1]
    if notice:
        print(f"baton: {notice}")
    outcomes: list[LinkOutcome] = []
    with lock_run(run.directory), StopRequests() as stops:
        links = read_links(run.directory)  # nobody adds one from here on
        first, step = next_number(links), newest_step(run.directory, links)
        for link in range(first, first + num_links):
            work = (DebugLink if run.cluster == "debug" else LocalLink)(run, link, resume_from=step)
            record_submission(run, link, first=first, job_id=work.job_id, log=work.log)
            print(f"== link {link} ({link - first + 1} of {num_links}), seed {run.seed(link)}, log {_short(work.log)}")
            outcomes.append(work.wait(stops))
            step = outcomes[-1].resume_at
            print(f"== link {link} ended at step {step}: {outcomes[-1].words}", flush=True)
            mark_done(run.directory, outcomes[-1].exit_code)
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
    print(f"baton: the run can go on from step {step} with: {continue_command(run)}")
    return int(ExitCode.CONTINUE)


def continue_command(run: LaunchedRun) -> str:
    """Return what to type for one more link of a run."""
    return f"./launch.sh -n 1 --run {run.directory.name} {_short(run.header.path)}"


def _fail(run: LaunchedRun, reason: str, last: LinkOutcome) -> int:
    if last.exit_code != ExitCode.LEASE:  # then another job is at work, and the run is well
        write_whole(run.directory / FAILED, reason + "\n")
    print(f"baton: the chain stops: {reason}", file=sys.stderr)
    print(f"baton: when that is mended, go on with: {continue_command(run)}", file=sys.stderr)
    return last.exit_code or int(ExitCode.BUG)


def _short(path: Path) -> Path:
    """Return a path relative to the current directory where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
