"""`launch` and `extend`: from what a person typed to a chain of links."""

import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.rundir.files import (
    DONE,
    FAILED,
    LOGS,
    STOP,
    ExitCode,
    runs_root,
)
from core.rundir.ledger import Link, holder, newest_step, read_links
from launchers.chain.snapshot import take_snapshot
from launchers.chain.wish import Wish, merged_overrides, seed_base
from launchers.here.environment import ROOT
from launchers.here.machine import slurm_answers
from launchers.runs import LaunchError, checked, find_run
from launchers.show.results import print_results
from launchers.slurm.header import Header, HeaderError, read_header
from launchers.slurm.queue import active, read_queue

if TYPE_CHECKING:
    from launchers.chain.submission import Run


@dataclass(frozen=True)
class Prepared:
    """A run whose links may be started."""

    run: "Run"
    wish: Wish
    after: str | None  # the jobs that its first link waits for
    num_known: int  # links that the run had when this was decided

    @property
    def is_new(self) -> bool:
        return not self.num_known


def extend(name: str, *, num_links: int, overrides: list[str], cluster: str | None, is_live: bool) -> int:
    """More links for a run, as it was launched before; lifts a cancellation."""
    run = find_run(name)
    submitted = next((link.submitted for link in reversed(read_links(run)) if "argv" in link.submitted), None)
    if submitted is None:
        raise LaunchError(f"run {name} was not launched by ./launch.sh; use: ./launch.sh --run {name} FILE.sub")
    wish = Wish(Path(submitted["argv"][0]), overrides, num_links, run=name, cluster=cluster, is_live=is_live)
    header_of(wish.sub)  # refused before the cancellation is lifted
    (run / STOP).unlink(missing_ok=True)
    return launch(wish, gate=submitted.get("gate"))


def launch(wish: Wish, *, gate: str | None = None) -> int:
    """Queue or do the links of a run; the exit code. `gate`: the run that must be done before."""
    prepared = prepare(wish, header_of(wish.sub), gate=gate)
    if prepared is None:
        return int(ExitCode.DONE)
    say(prepared)
    if wish.is_dry:
        return show(prepared)
    code = start(prepared)
    if prepared.run.cluster == "slurm":
        from launchers.chain.chain import say_what_to_type

        say_what_to_type(prepared.run.directory.name)
    return code


def header_of(sub: Path) -> Header:
    """The header under the absolute path of its file, as jobs start elsewhere. LaunchError with all that is wrong."""
    try:
        header = read_header(sub)
    except FileNotFoundError:
        raise LaunchError(f"no such file: {sub}") from None
    except HeaderError as error:
        raise LaunchError("\n".join(error.problems)) from None
    except OSError as error:
        raise LaunchError(f"{sub} cannot be read: {error.strerror}") from None
    return replace(header, path=sub.absolute())


def prepare(wish: Wish, header: Header, *, gate: str | None = None) -> Prepared | None:
    """Decide everything, write nothing but the copy of the code; None for a run that is done. LaunchError to refuse."""
    name = checked(wish.run or header.job_name)
    directory = runs_root() / name
    if (directory / DONE).exists():
        print(f"run {name} is done: nothing to do (--run NAME starts another)")
        print_results(directory)
        return None
    if (directory / STOP).exists():
        because = (directory / STOP).read_text(encoding="utf-8").strip()
        raise LaunchError(f"run {name} was {because}; go on with: ./launch.sh extend {name} -n {wish.num_links}")
    links = read_links(directory)
    overrides = merged_overrides(wish, links)
    base = seed_base(wish, links, directory, overrides)
    cluster = wish.cluster or default_cluster()
    after = _after(wish, links, directory, cluster)
    code = _code(wish, cluster)

    from launchers.chain.submission import Run  # late, because submitit is slow to import and wants nothing above

    run = Run(directory, header, overrides, base, cluster, code, gate)  # type: ignore[arg-type]
    return Prepared(run, wish, after, num_known=len(links))


@cache
def default_cluster() -> str:
    """SLURM where one answers, else this machine."""
    return "slurm" if slurm_answers() else "local"


def _code(wish: Wish, cluster: str) -> Path:
    """Where the links run."""
    if cluster == "debug":
        return ROOT
    if wish.is_live:
        print(f"warning: links run what {ROOT} holds when they start, so edits of it change the links to come")
        return ROOT
    return _snapshot(runs_root(), is_dry=wish.is_dry)


@cache
def _snapshot(runs: Path, *, is_dry: bool) -> Path:
    """The copy of the code that all runs of this launch share."""
    snapshot = take_snapshot(ROOT, runs, is_dry=is_dry)
    if snapshot.new:
        others = f" and {len(snapshot.new) - 1} more" if len(snapshot.new) > 1 else ""
        print(f"the copy of the code has files that git does not track: {snapshot.new[0]}{others}")
    return snapshot.root


def say(prepared: Prepared) -> None:
    """One line on what is about to happen."""
    run, asked = prepared.run, prepared.wish.num_links
    where = {"slurm": "on SLURM", "local": "on this machine", "debug": "in this terminal"}[run.cluster]
    resumed = "" if prepared.is_new else f", going on from step {newest_step(run.directory):,}"
    links = "1 link" if asked == 1 else f"{asked} links"
    print(f"run {run.directory.name} {where}: {links} in {run.directory}{resumed}", flush=True)


def show(prepared: Prepared) -> int:
    """The exact submissions."""
    from launchers.chain.chain import next_link
    from launchers.chain.submission import submission_text

    run, after = prepared.run, prepared.after
    first = next_link(run.directory)
    for link in range(first, first + prepared.wish.num_links):
        print(f"---- link {link}, seed {run.seed(link)}")
        print(submission_text(run, link, after=after) if run.cluster == "slurm" else run.command(link))
        after = f"<job of link {link}>"
    return int(ExitCode.DONE)


def start(prepared: Prepared) -> int:
    """Queue the links, or do them here."""
    from launchers.chain.chain import alone, queue_on_slurm, work_here

    if prepared.run.cluster == "slurm":
        with alone(prepared.run.directory):
            make_ready(prepared)
            wish = prepared.wish
            queue_on_slurm(prepared.run, wish.num_links, after=prepared.after, keep_queued=wish.keep_queued)
        return int(ExitCode.DONE)
    make_ready(prepared)
    return work_here(prepared.run, prepared.wish.num_links)


def make_ready(prepared: Prepared) -> None:
    """The run directory, with a copy of a .sub file that is not part of the code, and without an old failure.

    LaunchError where another launch came in between: its links are queued, and these would start beside them.
    """
    run = prepared.run
    if len(read_links(run.directory)) != prepared.num_known:
        name = run.directory.name
        message = f"run {name} has just been launched; see ./launch.sh status {name}, or add links: ./launch.sh extend"
        raise LaunchError(f"{message} {name} -n {prepared.wish.num_links}", exit_code=ExitCode.LEASE)
    (run.directory / LOGS).mkdir(parents=True, exist_ok=True)
    if run.script.parent == run.directory / LOGS:
        shutil.copyfile(run.header.path, run.script)
    failed = run.directory / FAILED
    if failed.exists():
        print(f"it had failed: {failed.read_text(encoding='utf-8').strip()}; trying again")
        failed.unlink()


def _after(wish: Wish, links: list[Link], directory: Path, cluster: str) -> str | None:
    """The jobs that the first link waits for, as `7` or `7:9`: the one named, and the run's last one in the queue."""
    named = [] if wish.after is None else [wish.after]
    if named and cluster != "slurm":
        raise LaunchError(f"--after {wish.after}: only SLURM has a queue, and none answers")
    if named and not named[0].isdigit():
        raise LaunchError(f"--after {wish.after}: expected the number of a job")
    queued = active(read_queue(links), links)
    if queued and cluster == "slurm":
        return ":".join(dict.fromkeys([*named, list(queued)[-1]]))
    lease = holder(directory)
    if queued or (lease and str(lease.get("job_id")) not in named):
        who = f"job {lease['job_id']} on {lease['host']}" if lease else f"{len(queued)} queued jobs"
        message = f"run {directory.name} is in use by {who}; wait, or: ./launch.sh cancel {directory.name}"
        raise LaunchError(message, exit_code=ExitCode.LEASE)
    return wish.after
