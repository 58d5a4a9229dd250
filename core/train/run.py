"""A run: its directory, its lease, its ledger entry, and how a link of it begins and ends.

`run_job(config, body)` is the whole of a job around the recipe's own code: join the ranks, take the lease, compare the
configuration with the one the run began with, call `body(run)`, and turn what happened into an exit code.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from core import distributed
from core.config import ConfigError, diff, section, to_dict, to_yaml
from core.distributed import Ranks
from core.optim import OptimConfig
from core.runfiles import (
    CHECKPOINTS,
    CONFIG,
    DONE,
    LEDGER,
    ExitCode,
    deadline_from_environment,
    job_from_environment,
    link_from_environment,
    read_records,
    record_link,
    runs_root,
    write_whole,
)
from core.train.checkpoint import CheckpointConfig, CheckpointStore
from core.train.errors import exit_code_of
from core.train.lease import Lease
from core.train.loggers import LoggerConfig
from core.train.report import write_report
from core.train.settings import TrainConfig
from core.train.stop import StopConfig, StopSignal

logger = logging.getLogger(__name__)

FIXED = ("run.seed", "model.", "data.", "plan.")  # what a run cannot change and still be the same run


@section
class RunConfig:
    """Which run, and how this link of it is to be watched.

    `link_steps`: end each link after so many steps (exit code 75). `record_samples`: write the sample ids of each step
    to samples.jsonl. `debug`: four steps with anomaly detection. `profile`: a trace of a few steps under profile/.
    """

    name: str
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    link_steps: int | None = None
    record_samples: bool = False
    debug: bool = False
    profile: bool = False


class RecipeConfig(Protocol):
    """The sections that every recipe's configuration has."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def stop(self) -> StopConfig: ...
    @property
    def loggers(self) -> LoggerConfig: ...


@dataclass(frozen=True)
class Run:
    """One link of a run, on one rank."""

    directory: Path
    config: RecipeConfig
    ranks: Ranks
    token: int
    link: int
    stop: StopSignal
    checkpoints: CheckpointStore

    @property
    def seed(self) -> int:
        return self.config.run.seed


@dataclass(frozen=True)
class Outcome:
    """How a link ended: `finished` when the last step of the run is done, else why it stopped."""

    step: int
    finished: bool
    reason: str


def run_job(config: RecipeConfig, body: Callable[[Run], Outcome]) -> int:
    """Run one link and return its exit code; the ledger gets it too, with the reason in words."""
    directory = runs_root() / config.run.name
    rank, _, _ = distributed.place()
    _start_log(rank)
    if (directory / DONE).exists():
        logger.info("%s is done: nothing to do", directory)
        return ExitCode.DONE
    os.umask(0o077)
    started = time.monotonic()
    stop = StopSignal(config.stop, deadline=deadline_from_environment())
    stop.install()
    lease: Lease | None = None
    link = link_from_environment()[0]
    outcome = Outcome(step=0, finished=False, reason="")
    code = ExitCode.BUG
    try:
        with distributed.joined(device=config.run.device) as ranks:
            if ranks.is_first:
                directory.mkdir(parents=True, exist_ok=True)
                lease, problem = _take_lease(directory)
            else:
                problem = None
            problem, token, link = ranks.from_first(
                (problem, lease.token if lease else 0, link or _next_link(directory))
            )
            if problem is not None:
                raise problem
            changed = ranks.from_first(_compare_config(directory, config) if ranks.is_first else None)
            if changed is not None:
                raise changed
            store = CheckpointStore(directory / CHECKPOINTS, config.checkpoint, ranks=ranks, token=token)
            if ranks.is_first:
                newest = store.newest()
                step = int(newest.name.removeprefix("step_")) if newest else 0
                job, seed = job_from_environment(), link_from_environment()[1]
                facts = {"job_id": job, "host": socket.gethostname(), "pid": os.getpid()}
                record_link(directory, event="started", link=link, **facts, token=token, step=step, seed=seed)
            run = Run(directory, config, ranks, token, link, stop, store)
            outcome = body(run)
            code = ExitCode.DONE if outcome.finished else ExitCode.CONTINUE
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        outcome = Outcome(outcome.step, False, f"{type(error).__name__}: {error}".splitlines()[0])
        logger.error("%s", error, exc_info=code == ExitCode.BUG)
    if lease is not None:
        _end(directory, lease, link=link or 0, code=code, outcome=outcome, train_s=time.monotonic() - started)
    return code


def _take_lease(directory: Path) -> tuple[Lease | None, Exception | None]:
    """The lease, or why there is none: the other ranks must hear of it before anyone leaves."""
    try:
        return Lease(directory, job_id=job_from_environment()), None
    except (RuntimeError, OSError) as error:
        return None, error


def _next_link(directory: Path) -> int:
    """The number of a link that no launcher numbered."""
    return 1 + max((int(record.get("link", 0)) for record in read_records(directory / LEDGER)), default=0)


def _compare_config(directory: Path, config: RecipeConfig) -> ConfigError | None:
    """Save the configuration of a new run; refuse what would make another run of an old one, log other changes."""
    path = directory / CONFIG
    if path.exists():
        changes = diff(yaml.safe_load(path.read_text(encoding="utf-8")), to_dict(config))
        if fatal := [change for change in changes if change.startswith(FIXED)]:
            advice = "restore them, or start another run with run.name=..."
            return ConfigError([f"{path}: the run began with other values; {advice}", *fatal])
        for change in changes:
            logger.info("changed since the last link: %s", change)
    write_whole(path, to_yaml(config))
    return None


def _end(directory: Path, lease: Lease, *, link: int, code: ExitCode, outcome: Outcome, train_s: float) -> None:
    """Ledger, report, marker, lease: in this order, so that DONE is never there without what it promises."""
    facts: dict[str, Any] = {"exit_code": int(code), "reason": outcome.reason, "step": outcome.step}
    record_link(directory, event="ended", link=link, **facts, token=lease.token, train_s=round(train_s, 1))
    try:
        if code in (ExitCode.DONE, ExitCode.CONTINUE):
            write_report(directory)
    except Exception:  # a picture less is no reason to fail a link
        logger.exception("the report could not be written")
    if code == ExitCode.DONE:
        write_whole(directory / DONE, f"step {outcome.step}\n")
    lease.release()


def _start_log(rank: int) -> None:
    level = logging.INFO if rank == 0 else logging.WARNING
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.basicConfig(level=level, format=f"{prefix}%(message)s", stream=sys.stdout, force=True)
