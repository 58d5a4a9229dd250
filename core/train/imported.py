"""A training that was begun elsewhere as a run of ours: its first checkpoint, as training writes them.

    return import_run(
        Config, lambda config: HubertPretraining(config.model), import_lightning,
        argv=argv, description=__doc__, default_config=DEFAULT_CONFIG,
    )

`train` with the same configuration goes on from there: weights, moments, number of updates, hence the learning rate.
Data begin anew, with the first step of the plan: where they stood elsewhere means nothing here.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from core import distributed
from core.checkpoint.store import CheckpointStore
from core.config.load import parse_args, to_yaml
from core.job.errors import exit_on_error
from core.job.run import Run
from core.job.stop import StopSignal
from core.optim.optim import build_optimizer
from core.optim.parameters import freeze
from core.parallel.engine import Engine
from core.parallel.loss_scale import LossScale
from core.parallel.settings import ParallelConfig
from core.parallel.weights import save_weights
from core.rundir.environment import runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, CONFIG
from core.rundir.whole_files import write_whole
from core.timing.phases import Phases
from core.train.config import TrainingConfig
from core.train.progress import Progress

# Fill an optimizer, and the model that it belongs to, on the CPU; return how many updates they have had, or raise
# ValueError.
Fill = Callable[[torch.optim.Optimizer], int]


C = TypeVar("C", bound=TrainingConfig)


def import_run(
    schema: type[C],
    build: Callable[[C], nn.Module],
    fill: Callable[..., int],
    *,
    argv: Sequence[str] | None,
    description: str | None,
    default_config: Path,
) -> int:
    """Run a command that imports a file: its first word is the file, the others ask for the configuration.

    `fill(model, optimizer, path=file)` is as `begin_run` wants it. The file is taken apart from the settings because a
    name such as `epoch=2-step=9.ckpt` looks like one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    file = words.pop(0) if words and not words[0].startswith("-") else None
    config = parse_args(schema, argv=words, prog="import FILE", description=description, default_config=default_config)
    if file is None:
        print("name the file to import first, then --config and settings", file=sys.stderr)
        sys.exit(ExitCode.CONFIG)
    model = build(config)
    begin_run(config, model, partial(fill, model, path=Path(file)))
    return ExitCode.DONE


def begin_run(config: TrainingConfig, model: nn.Module, fill: Fill) -> None:
    """Make the run `config.run.name` with one checkpoint, of `model` and its optimizer as `fill` leaves them.

    Alone, on a CPU. The run is there whole or not at all. What is wrong ends the process with its exit code: a run that
    exists already, one that has had more updates than train.max_steps, what `fill` says.
    """
    with exit_on_error(), distributed.joined(device="cpu") as ranks:
        directory = runs_root() / config.run.name
        if ranks.world_size > 1:
            raise ValueError("an import is the work of one process: start it without torchrun or srun")
        if directory.exists():
            raise ValueError(f"run.name={config.run.name}: {directory} exists already; choose another name")
        freeze(model, config.optim.freeze)
        optimizer = build_optimizer(model, config.optim)
        step = fill(optimizer)
        if step > config.train.max_steps:
            raise ValueError(f"train.max_steps={config.train.max_steps} must be at least the {step} updates it has had")
        unfinished = directory.with_name(f".{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True, mode=0o700)
        write_whole(unfinished / CONFIG, to_yaml(config))
        store = CheckpointStore(unfinished / CHECKPOINTS, config.checkpoint, ranks=ranks, token=0)
        stop = StopSignal(config.stop, deadline=None)
        run = Run(unfinished, config, ranks, 0, 0, stop, store, Phases(ranks.device))
        progress = Progress(config.train.validate_every_steps, None, step=step)
        progress.save(run, cast(Engine, _Imported(model, optimizer, config.parallel)), wait=True)
        unfinished.rename(directory)
    print(f"{directory}: {step} updates of {config.train.max_steps} done; train goes on from there")


@dataclass(frozen=True)
class _Imported:
    """The part of an engine that a save needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: ParallelConfig

    def save(self, directory: Path) -> Future[None]:
        return save_weights(self.model, self.optimizer, directory, group=None)

    def state(self) -> dict[str, Any]:
        is_scaled = self.config.precision in ("auto", "fp16")
        return LossScale(self.config.loss_scale, torch.device("cpu")).state() if is_scaled else {}
