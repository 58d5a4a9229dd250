"""A run: its configuration, and how a link of it begins and ends.

`run_job(config, body)` is the whole of a job around the recipe's own code: join the ranks, take the lease, compare the
configuration with the one the run began with, call `body(run)`, and turn what happened into an exit code.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import yaml

from core import distributed
from core.checkpoint.store import CheckpointStore
from core.config.load import diff, load, to_dict, to_yaml
from core.config.schema import ConfigError
from core.distributed import Ranks
from core.job.context import write_run_context
from core.job.errors import describe_error, exit_code_of
from core.job.link import RunningLink, restart_command
from core.job.rank_files import RankFile
from core.job.settings import JobConfig
from core.job.stop import StopSignal
from core.job.watchdog import Watchdog
from core.rundir.environment import deadline_from_environment, runs_root, slurm_job
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, CONFIG, DONE
from core.rundir.whole_files import write_whole
from core.timing.phases import Phases

logger = logging.getLogger(__name__)

FIXED = ("run.seed", "model.", "data.", "plan.", "pretrained.", "predecessor")  # else it is another run

C = TypeVar("C", bound=JobConfig, covariant=True)
J = TypeVar("J", bound=JobConfig)


@dataclass(frozen=True)
class Run(Generic[C]):
    """One link of a run, on one rank."""

    directory: Path
    config: C
    ranks: Ranks
    token: int
    link: int
    stop: StopSignal
    checkpoints: CheckpointStore
    phases: Phases

    @property
    def seed(self) -> int:
        return self.config.run.seed

    def stops(self, piece_s: float) -> bool:
        """Return whether any rank wants to stop, after a piece of work of so many seconds. All ranks together."""
        self.stop.observe(step_s=piece_s)
        return self.ranks.any(self.stop.reason is not None)


@dataclass(frozen=True)
class Outcome:
    """How a link ended: `finished` when the last step of the run is done, else why it stopped."""

    step: int
    finished: bool
    reason: str


def run_job(config: J, body: Callable[[Run[J]], Outcome]) -> int:
    """Run one link and return its exit code; the ledger gets it too, with the reason in words."""
    directory = runs_root() / config.run.name
    rank, _, world_size = distributed.place()
    _start_log(rank)
    if (directory / DONE).exists():
        logger.info("%s is done: nothing to do", directory)
        return ExitCode.DONE
    os.umask(0o077)
    is_first = rank == 0 or slurm_job() is None  # in SLURM rank 0 alone hears of a changed time limit
    stop = StopSignal(config.stop, deadline=deadline_from_environment() if is_first else None)
    stop.install()
    if rank == 0 and (job := slurm_job()) is not None:
        stop.follow(job)
    link = RunningLink(directory)
    file: RankFile | None = None
    step: int | None = None
    try:
        with distributed.joined(device=config.run.device) as ranks:
            link.begin(ranks)
            changed = ranks.from_first(_compare_config(directory, config) if ranks.is_first else None)
            if changed is not None:
                raise changed
            store = CheckpointStore(directory / CHECKPOINTS, config.kept_checkpoints, ranks=ranks, token=link.token)
            if ranks.is_first:
                link.record_start(step=store.newest_step() or 0)
                write_run_context(directory, to_dict(config), ranks=ranks, link=link.number)
            phases = link.phases = Phases(ranks.device, window=config.timing.window)
            run = Run(directory, config, ranks, link.token, link.number, stop, store, phases)
            file = RankFile(link.rank_files, phases, rank=rank, token=link.token)
            limits = config.watchdog
            hung = partial(link.end, ExitCode.HANG)
            with file, Watchdog(limits, phases, file, world_size=world_size, on_hang=hung):
                outcome = body(run)
            code = ExitCode.DONE if outcome.finished else ExitCode.CONTINUE
            reason, step = outcome.reason, outcome.step
    except (Exception, KeyboardInterrupt) as error:
        code, reason = exit_code_of(error), describe_error(error)
        logger.error("%s", error, exc_info=code == ExitCode.BUG and isinstance(error, Exception))
        if file is not None and code == ExitCode.BUG:
            code, reason = file.root_cause(code, reason)
            logger.error("%s", reason)
    code = link.end(code, reason, step=step)
    command = restart_command(world_size) if link.token and code in (ExitCode.CONTINUE, ExitCode.STORAGE) else None
    if command is not None:
        logger.info("to go on from the last checkpoint, in %s: %s", Path.cwd(), command)
    return code


def _compare_config(directory: Path, config: JobConfig) -> ConfigError | None:
    """Save the configuration of a new run; refuse what would make another run of an old one, log other changes."""
    path = directory / CONFIG
    if path.exists():
        try:
            began = to_dict(load(type(config), path))  # a key that there was not yet has its default
        except ConfigError:
            began = yaml.safe_load(path.read_text(encoding="utf-8"))
        changes = diff(began, to_dict(config))
        fixed = [key for key in FIXED if not (key == "data." and config.run.accept_data)]
        if fatal := [change for change in changes if change.startswith(tuple(fixed))]:
            advice = "restore them, or start another run with run.name=... (run.accept_data=true: other data, this run)"
            return ConfigError([f"{path}: the run began with other values; {advice}", *fatal])
        for change in changes:
            logger.info("changed since the last link: %s", change)
    write_whole(path, to_yaml(config))
    return None


def _start_log(rank: int) -> None:
    level = logging.INFO if rank == 0 else logging.WARNING
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.basicConfig(level=level, format=f"{prefix}%(message)s", stream=sys.stdout, force=True)
