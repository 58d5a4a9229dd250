"""A suite at work: its runs here, one after another, or as tasks of a SLURM job array. Finished runs are not repeated.

runs/SUITE/bench_ab.yaml    the settings that its runs were begun with
runs/SUITE/runs/            a directory a run, with its attempts
runs/SUITE/STOPPED          a run failed and stop_on_error is set: no other begins
"""

import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.bench import attempt as attempts
from core.bench.attempt import OK, Attempt
from core.bench.manifest import append_row, note_skipped, read_rows
from core.bench.plan import PlannedRun, overrides, planned_runs
from core.bench.row import GIT, row_of
from core.bench.settings import ROOT, BenchConfig, Mode
from core.bench.telemetry.machine import Gpus
from core.bench.telemetry.processes import StopRequest
from core.config.load import diff, load, to_dict, to_yaml
from core.config.schema import ConfigError
from core.job.context import scrubbed
from core.rundir.environment import ENV_RUNS, runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.repository import git_state
from core.rundir.whole_files import write_json, write_whole

logger = logging.getLogger(__name__)

STOPPED = "STOPPED"
INTERRUPTED_CODE = 130  # of a bench that got Ctrl-C
# Settings that may change while a suite is under way: its runs stay comparable.
FREE = (
    "launch.master_port_base", "watch", "telemetry", "leaks", "resume", "stop_on_error", "manifest_write_retries",
    "rank_by", "baseline_group", "tail_timing_points",
)  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """The runs of one mode of a suite."""

    directory: Path
    mode: Mode
    config: BenchConfig
    runs: list[PlannedRun]

    @classmethod
    def begin(cls, config: BenchConfig, mode: Mode) -> "Suite":
        """A new suite, or one to go on with. ConfigError where its runs would not be comparable with those it has."""
        directory = runs_root() / config.name
        suite = cls(directory, mode, config, _planned(config, mode))
        path = directory / f"bench_{mode}.yaml"
        if path.exists():
            changes = diff(to_dict(load(BenchConfig, path)), to_dict(config))
            fatal = [change for change in changes if not change.startswith(FREE) and not _is_of_other(change, mode)]
            if fatal:
                advice = "restore them, or begin another suite with name=..."
                raise ConfigError([f"{path}: the suite began with other values; {advice}", *fatal])
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        write_whole(path, to_yaml(config))
        if not (directory / GIT).exists():
            write_json(directory / GIT, scrubbed(git_state(ROOT)))
        return suite

    @classmethod
    def of_task(cls, path: Path) -> "Suite":
        """Of the settings file that a task of the job array was given."""
        mode: Mode = "ab" if path.stem == "bench_ab" else "sweep"
        config = load(BenchConfig, path)
        return cls(path.parent, mode, config, planned_runs(config, mode))

    def folder(self, run: PlannedRun) -> Path:
        return self.directory / "runs" / run.name


def run_here(suite: Suite, stop: StopRequest) -> int:
    """All runs that are not finished, one after another; the exit code. What is left out is noted with the reason."""
    (suite.directory / STOPPED).unlink(missing_ok=True)
    codes: set[int] = set()
    for run in suite.runs:
        codes.add(_skip(suite, run, "interrupted before it began") if stop else work(suite, run, stop))
    if stop:
        return INTERRUPTED_CODE
    unfinished = codes - {ExitCode.DONE}
    return int(ExitCode.BUG) if unfinished - {ExitCode.CONTINUE} else max(unfinished, default=int(ExitCode.DONE))


def work(suite: Suite, run: PlannedRun, stop: StopRequest) -> int:
    """One run, if it is to be done: 0 once it is finished, 75 if interrupted, else what its attempt ended with."""
    folder = suite.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as is_alone:
        if not is_alone:
            return _skip(suite, run, "another bench is at work on it")
        if _settle(suite, run) and suite.config.resume:
            return _skip(suite, run, "finished before")
        stopped = suite.directory / STOPPED
        if stopped.exists():
            _skip(suite, run, f"stop_on_error: {stopped.read_text(encoding='utf-8').strip()}")
            return int(ExitCode.BUG)
        logger.info("run %d of %d: %s", run.number, len(suite.runs), run.name)
        gpus = Gpus.seen()
        attempt = attempts.do(folder, suite.config, overrides(suite.config, run.variant, gpus), stop=stop)
        _record(suite, run, attempt, gpus)
    ended = attempt.ended
    assert ended is not None
    logger.info("%s: %s after %.1f s %s", run.name, ended.status, ended.duration_s, ended.reason)
    if ended.status == OK:
        return int(ExitCode.DONE)
    if ended.status == attempts.INTERRUPTED:
        return int(ExitCode.CONTINUE)
    logger.error("%s", attempts.tail(attempt.directory / attempts.LOG, suite.config.watch.failure_dump_tail))
    if suite.config.stop_on_error:
        write_whole(stopped, f"{run.name} {ended.status}: {ended.reason}\n")
    return ended.exit_code if ended.exit_code and ended.exit_code > 0 else int(ExitCode.BUG)


def queue(suite: Suite) -> int:
    """Hand the runs to the launcher as the tasks of a job array; its exit code."""
    if not suite.config.resume:
        raise ConfigError(["resume=false: on SLURM begin another suite with name=..., as the launcher repeats no run"])
    (suite.directory / STOPPED).unlink(missing_ok=True)
    if all(is_finished(suite, run) for run in suite.runs):
        logger.info("all %d runs of %s are finished", len(suite.runs), suite.mode)
        return int(ExitCode.DONE)
    name = f"{suite.directory.name}-{suite.mode}"
    numbers = ",".join(str(run.number) for run in suite.runs)
    task = [f"bench.number={numbers}", f"bench.suite={suite.directory / f'bench_{suite.mode}.yaml'}"]
    command = [sys.executable, "-P", "-m", "launchers"]
    command += ["sweep", "--run", name] if len(suite.runs) > 1 else ["--run", f"{name}-1"]
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, ENV_RUNS: str(runs_root()), "PYTHONPATH": python_path}
    return subprocess.run([*command, suite.config.launch.sub, *task], cwd=ROOT, env=environment).returncode


def is_finished(suite: Suite, run: PlannedRun) -> bool:
    ended = [attempt.ended for attempt in attempts.attempts(suite.folder(run))]
    return any(one is not None and one.status == OK for one in ended)


def _settle(suite: Suite, run: PlannedRun) -> bool:
    """Note the end of every attempt that nobody noted; whether one of them has finished the run.

    Only for who is alone at work on it.
    """
    known = {(row["mode"], row["group"], row["repeat"], row["attempt"]) for row in read_rows(suite.directory)}
    for attempt in attempts.attempts(suite.folder(run)):
        if attempt.ended is None:
            attempt.settle(grace_s=suite.config.watch.stop_grace_s)
        if (run.mode, run.group, str(run.repeat), str(attempt.number)) not in known:
            _record(suite, run, attempt, Gpus.seen())
    return is_finished(suite, run)


def _record(suite: Suite, run: PlannedRun, attempt: Attempt, gpus: Gpus) -> None:
    row = row_of(suite.config, run, attempt, gpus)
    append_row(suite.directory, row, beside=attempt.directory, retries=suite.config.manifest_write_retries)


def _skip(suite: Suite, run: PlannedRun, reason: str) -> int:
    logger.info("%s is left out: %s", run.name, reason)
    note_skipped(suite.directory, mode=run.mode, group=run.group, repeat=run.repeat, reason=reason)
    return int(ExitCode.DONE)


def _planned(config: BenchConfig, mode: Mode) -> list[PlannedRun]:
    try:
        return planned_runs(config, mode)
    except ValueError as error:
        raise ConfigError([str(error)]) from None


def _is_of_other(change: str, mode: Mode) -> bool:
    """Whether a changed setting is that of the other mode."""
    return change.startswith("sweep." if mode == "ab" else "ab.")


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else is at work on a run, held while the context lasts."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _took(descriptor)
    finally:
        os.close(descriptor)


def _took(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def slurm_answers() -> bool:
    """Whether jobs can be submitted here."""
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return " is UP" in ping.stdout
