"""`launch` and `extend`: from what a person typed to a chain of links."""

import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.rundir.environment import runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.files import DONE, FAILED, LOGS, STOP
from core.rundir.lease import find_holder
from core.rundir.ledger import Event, LinkRecord, links_of, newest_step, next_number, read_events, read_links
from launchers.chain.request import LaunchRequest, merged_overrides, seed_base
from launchers.chain.snapshot import take_snapshot
from launchers.here.environment import ROOT
from launchers.here.machine import slurm_answers
from launchers.runs import LaunchError, find_run, valid_name
from launchers.show.results import print_results
from launchers.slurm.header import Header, HeaderError, read_header
from launchers.slurm.queue import active, read_queue

if TYPE_CHECKING:
    from launchers.chain.submission import LaunchedRun


@dataclass(frozen=True)
class PreparedLaunch:
    """A run whose links may be started."""

    run: "LaunchedRun"
    request: LaunchRequest
    after: str | None  # the jobs that its first link waits for
    links: list[LinkRecord]  # that the run had when this was decided

    @property
    def first(self) -> int:
        """The number of the first link to start."""
        return next_number(self.links)


def extend(name: str, *, num_links: int, overrides: list[str], cluster: str | None, is_live: bool) -> int:
    """Add links to a run, launched as it was before; a cancellation is lifted."""
    run = find_run(name)
    events = read_events(run)
    links = links_of(events)
    submitted = next((link.submitted for link in reversed(links) if "argv" in link.submitted), None)
    if submitted is None:
        raise LaunchError(f"run {name} was not launched by ./launch.sh; use: ./launch.sh --run {name} FILE.sub")
    sub = Path(submitted["argv"][0])
    request = LaunchRequest(sub, overrides, num_links, run=name, cluster=cluster, is_live=is_live)
    read_header_of(request.sub)  # refused before the cancellation is lifted
    (run / STOP).unlink(missing_ok=True)
    return launch(request, gate=submitted.get("gate"), events=events)


def launch(request: LaunchRequest, *, gate: str | None = None, events: list[Event] | None = None) -> int:
    """Queue or do the links of a run; return the exit code. `gate`: the run that must be done before.

    `events`: of the run's ledger, where that has been read.
    """
    prepared = prepare_launch(request, read_header_of(request.sub), gate=gate, events=events)
    if prepared is None:
        return int(ExitCode.DONE)
    announce(prepared)
    if request.is_dry:
        return print_submissions(prepared)
    code = start_links(prepared)
    if prepared.run.cluster == "slurm":
        from launchers.chain.chain import print_commands

        print_commands(prepared.run.directory.name)
    return code


def read_header_of(sub: Path) -> Header:
    """Read a header under the absolute path of its file: jobs start elsewhere. LaunchError with all that is wrong."""
    try:
        header = read_header(sub)
    except FileNotFoundError:
        raise LaunchError(f"no such file: {sub}") from None
    except HeaderError as error:
        raise LaunchError("\n".join(error.problems)) from None
    except OSError as error:
        raise LaunchError(f"{sub} cannot be read: {error.strerror}") from None
    return replace(header, path=sub.absolute())


def prepare_launch(
    request: LaunchRequest, header: Header, *, gate: str | None = None, events: list[Event] | None = None
) -> PreparedLaunch | None:
    """Decide everything, write nothing but the copy of the code; None for a run that is done. LaunchError to refuse."""
    name = valid_name(request.run or header.job_name)
    directory = runs_root() / name
    events = read_events(directory) if events is None else events
    if (directory / DONE).exists():
        print(f"run {name} is done: nothing to do (--run NAME starts another)")
        print_results(directory, events)
        return None
    if (directory / STOP).exists():
        because = (directory / STOP).read_text(encoding="utf-8").strip()
        raise LaunchError(f"run {name} was {because}; go on with: ./launch.sh extend {name} -n {request.num_links}")
    links = links_of(events)
    overrides = merged_overrides(request, links)
    base = seed_base(request, links, directory, overrides)
    cluster = request.cluster or default_cluster()
    after = _after(request, links, directory, cluster)
    code = _code(request, cluster)

    # Late, because submitit is slow to import and wants nothing above.
    from launchers.chain.submission import LaunchedRun

    run = LaunchedRun(directory, header, overrides, base, cluster, code, gate)  # type: ignore[arg-type]
    return PreparedLaunch(run, request, after, links)


@cache
def default_cluster() -> str:
    """Return SLURM where one answers, else this machine."""
    return "slurm" if slurm_answers() else "local"


def _code(request: LaunchRequest, cluster: str) -> Path:
    """Return the folder of the code that links run."""
    if cluster == "debug":
        return ROOT
    if request.is_live:
        print(f"warning: links run what {ROOT} holds when they start, so edits of it change the links to come")
        return ROOT
    return _snapshot(runs_root(), is_dry=request.is_dry)


@cache
def _snapshot(runs: Path, *, is_dry: bool) -> Path:
    """Return the copy of the code that all runs of this launch share."""
    snapshot = take_snapshot(ROOT, runs, is_dry=is_dry)
    if snapshot.new:
        others = f" and {len(snapshot.new) - 1} more" if len(snapshot.new) > 1 else ""
        print(f"the copy of the code has files that git does not track: {snapshot.new[0]}{others}")
    return snapshot.root


def announce(prepared: PreparedLaunch) -> None:
    """Print one line on what is about to happen."""
    run, asked = prepared.run, prepared.request.num_links
    where = {"slurm": "on SLURM", "local": "on this machine", "debug": "in this terminal"}[run.cluster]
    step = newest_step(run.directory, prepared.links) if prepared.links else 0
    resumed = f", going on from step {step:,}" if prepared.links else ""
    links = "1 link" if asked == 1 else f"{asked} links"
    print(f"run {run.directory.name} {where}: {links} in {run.directory}{resumed}", flush=True)


def print_submissions(prepared: PreparedLaunch) -> int:
    """Print the exact submissions of a dry run."""
    from launchers.chain.submission import submission_text

    run, after = prepared.run, prepared.after
    for link in range(prepared.first, prepared.first + prepared.request.num_links):
        print(f"---- link {link}, seed {run.seed(link)}")
        print(submission_text(run, link, after=after) if run.cluster == "slurm" else run.command(link))
        after = f"<job of link {link}>"
    return int(ExitCode.DONE)


def start_links(prepared: PreparedLaunch) -> int:
    """Queue the links, or do them here; return the exit code."""
    from launchers.chain.chain import run_locally

    if prepared.run.cluster == "slurm":
        queue_links(prepared, after=prepared.after)
        return int(ExitCode.DONE)
    prepare_directory(prepared)
    return run_locally(prepared.run, prepared.request.num_links)


def queue_links(prepared: PreparedLaunch, *, after: str | None) -> list[tuple[int, str]]:
    """Queue the links behind the jobs `after`; return (link, job) of each."""
    from launchers.chain.chain import lock_run, queue_on_slurm

    request = prepared.request
    with lock_run(prepared.run.directory):
        prepare_directory(prepared)
        return queue_on_slurm(
            prepared.run, request.num_links, first=prepared.first, after=after, keep_queued=request.keep_queued
        )


def prepare_directory(prepared: PreparedLaunch) -> None:
    """Make the run directory, with a copy of a .sub file that is not part of the code, and without an old failure.

    LaunchError where another launch came in between: its links are queued, and these would start beside them.
    """
    run = prepared.run
    if len(read_links(run.directory)) != len(prepared.links):
        name = run.directory.name
        message = f"run {name} has just been launched; see ./launch.sh status {name}, or add links: ./launch.sh extend"
        raise LaunchError(f"{message} {name} -n {prepared.request.num_links}", exit_code=ExitCode.LEASE)
    (run.directory / LOGS).mkdir(parents=True, exist_ok=True)
    if run.script.parent == run.directory / LOGS:
        shutil.copyfile(run.header.path, run.script)
    failed = run.directory / FAILED
    if failed.exists():
        print(f"it had failed: {failed.read_text(encoding='utf-8').strip()}; trying again")
        failed.unlink()


def _after(request: LaunchRequest, links: list[LinkRecord], directory: Path, cluster: str) -> str | None:
    """Return the jobs to wait for, as `7` or `7:9`: the one named, and the run's last one in the queue."""
    named = [] if request.after is None else [request.after]
    if named and cluster != "slurm":
        raise LaunchError(f"--after {request.after}: only SLURM has a queue, and none answers")
    if named and not named[0].isdigit():
        raise LaunchError(f"--after {request.after}: expected the number of a job")
    queued = active(read_queue(links), links)
    if queued and cluster == "slurm":
        return ":".join(dict.fromkeys([*named, list(queued)[-1]]))
    lease = find_holder(directory)
    if queued or (lease and str(lease.get("job_id")) not in named):
        who = f"job {lease['job_id']} on {lease['host']}" if lease else f"{len(queued)} queued jobs"
        message = f"run {directory.name} is in use by {who}; wait, or: ./launch.sh cancel {directory.name}"
        raise LaunchError(message, exit_code=ExitCode.LEASE)
    return request.after
