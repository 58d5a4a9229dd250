"""A suite at work: its runs here, one after another, or as tasks of a SLURM job array. Finished runs are not repeated.

runs/SUITE/bench_ab.yaml    the settings that its runs were begun with
runs/SUITE/runs/            a directory a run, with its attempts
runs/SUITE/STOPPED          a run failed and stop_on_error is set: no other begins
"""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from core.bench.attempt import INTERRUPTED, LOG, OK, Attempt, attempt_run, attempts_at, tail
from core.bench.manifest import append_row, note_skipped, read_rows
from core.bench.plan import PlannedRun, choices, overrides, planned_runs
from core.bench.row import GIT, row_of
from core.bench.settings import ROOT, BenchConfig, Mode
from core.bench.telemetry.machine import Gpus
from core.config.load import diff, load, to_dict, to_yaml
from core.config.schema import ConfigError
from core.job.context import scrubbed
from core.rundir.environment import ENV_RUNS, runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.processes import StopRequests
from core.rundir.repository import git_state
from core.rundir.whole_files import locked, write_json, write_whole

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
        """Begin a suite, or go on with it. ConfigError where its runs would not be comparable with those it has."""
        directory = runs_root() / config.name
        try:
            suite = cls(directory, mode, config, planned_runs(config, mode))
            choices(config, suite.runs[0].variant, Gpus([]))  # may be refused, too
        except ValueError as error:
            raise ConfigError([str(error)]) from None
        if suite.settings.exists():
            changes = diff(to_dict(load(BenchConfig, suite.settings)), to_dict(config))
            free = (*FREE, "sweep." if mode == "ab" else "ab.")  # the other mode's have runs of their own
            fatal = [change for change in changes if not change.startswith(free)]
            if fatal:
                advice = "restore them, or begin another suite with name=..."
                raise ConfigError([f"{suite.settings}: the suite began with other values; {advice}", *fatal])
        (directory / "runs").mkdir(parents=True, exist_ok=True)
        write_whole(suite.settings, to_yaml(config))
        if not (directory / GIT).exists():
            write_json(directory / GIT, scrubbed(git_state(ROOT)))
        return suite

    @classmethod
    def of_task(cls, path: Path) -> "Suite":
        """Return the suite of the settings file that a task of the job array was given."""
        mode: Mode = "ab" if path.stem == "bench_ab" else "sweep"
        config = load(BenchConfig, path)
        return cls(path.parent, mode, config, planned_runs(config, mode))

    @property
    def settings(self) -> Path:
        """The file with the settings that its runs were begun with."""
        return self.directory / f"bench_{self.mode}.yaml"

    def folder(self, run: PlannedRun) -> Path:
        """Return the directory of a run, in which its attempts are."""
        return self.directory / "runs" / run.name


def run_here(suite: Suite, stops: StopRequests) -> int:
    """Do all runs that are not finished, one after another; return the exit code. What is left out is noted."""
    (suite.directory / STOPPED).unlink(missing_ok=True)
    codes: set[int] = set()
    for run in suite.runs:
        codes.add(_skip(suite, run, "interrupted before it began") if stops.count else work(suite, run, stops))
    if stops.count:
        return INTERRUPTED_CODE
    failed = codes - {ExitCode.DONE, ExitCode.CONTINUE}
    return int(ExitCode.BUG) if failed else max(codes, default=int(ExitCode.DONE))


def work(suite: Suite, run: PlannedRun, stops: StopRequests) -> int:
    """Do a run, if it is to be done. Return 0 once it is finished, 75 if interrupted, else its attempt's exit code."""
    folder, stopped = suite.folder(run), suite.directory / STOPPED
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", waits=False) as is_alone:
        if not is_alone:
            return _skip(suite, run, "another bench is at work on it")
        _settle(suite, run)
        if suite.config.resume and is_finished(suite, run):
            return _skip(suite, run, "finished before")
        if stopped.exists():
            _skip(suite, run, f"stop_on_error: {stopped.read_text(encoding='utf-8').strip()}")
            return int(ExitCode.BUG)
        logger.info("run %d of %d: %s", run.number, len(suite.runs), run.name)
        gpus = Gpus.seen()
        attempt = attempt_run(folder, suite.config, overrides(suite.config, run.variant, gpus), stops=stops)
        _record(suite, run, attempt, gpus)
    ended = attempt.ended
    assert ended is not None
    logger.info("%s: %s after %.1f s %s", run.name, ended.status, ended.duration_s, ended.reason)
    if ended.status in (OK, INTERRUPTED):
        return int(ExitCode.DONE if ended.status == OK else ExitCode.CONTINUE)
    logger.error("%s", tail(attempt.directory / LOG, suite.config.watch.failure_dump_tail))
    if suite.config.stop_on_error:
        write_whole(stopped, f"{run.name} {ended.status}: {ended.reason}\n")
    return ended.exit_code if ended.exit_code and ended.exit_code > 0 else int(ExitCode.BUG)


def queue(suite: Suite) -> int:
    """Hand the runs to the launcher as the tasks of a job array; return its exit code."""
    if not suite.config.resume:
        raise ConfigError(["resume=false: on SLURM begin another suite with name=..., as the launcher repeats no run"])
    (suite.directory / STOPPED).unlink(missing_ok=True)
    if all(is_finished(suite, run) for run in suite.runs):
        logger.info("all %d runs of %s are finished", len(suite.runs), suite.mode)
        return int(ExitCode.DONE)
    name = f"{suite.directory.name}-{suite.mode}"
    numbers = ",".join(str(run.number) for run in suite.runs)
    words = ["sweep", "--run", name] if len(suite.runs) > 1 else ["--run", f"{name}-1"]
    words.append(suite.config.launch.sub or str(Path(suite.config.config).with_name("bench.sub")))
    words += [f"bench.number={numbers}", f"bench.suite={suite.settings}"]
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, ENV_RUNS: str(runs_root()), "PYTHONPATH": python_path}
    return subprocess.run([sys.executable, "-P", "-m", "launchers", *words], cwd=ROOT, env=environment).returncode


def is_finished(suite: Suite, run: PlannedRun) -> bool:
    """Tell whether an attempt at a run has come to its end."""
    return any(ended.status == OK for attempt in attempts_at(suite.folder(run)) if (ended := attempt.ended))


def slurm_answers() -> bool:
    """Tell whether jobs can be submitted here."""
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return " is UP" in ping.stdout


def _settle(suite: Suite, run: PlannedRun) -> None:
    """Note the end of every attempt that nobody noted. Only for who is alone at work on the run."""
    known = {(row["mode"], row["group"], row["repeat"], row["attempt"]) for row in read_rows(suite.directory)}
    for attempt in attempts_at(suite.folder(run)):
        if attempt.ended is None:
            attempt.settle(grace_s=suite.config.watch.stop_grace_s)
        if (run.mode, run.group, str(run.repeat), str(attempt.number)) not in known:
            _record(suite, run, attempt, Gpus.seen())


def _record(suite: Suite, run: PlannedRun, attempt: Attempt, gpus: Gpus) -> None:
    row = row_of(suite.config, run, attempt, gpus)
    append_row(suite.directory, row, beside=attempt.directory, retries=suite.config.manifest_write_retries)


def _skip(suite: Suite, run: PlannedRun, reason: str) -> int:
    logger.info("%s is left out: %s", run.name, reason)
    note_skipped(suite.directory, vars(run), reason=reason)
    return int(ExitCode.DONE)
