"""A training that was begun elsewhere as a run of ours: its first checkpoint, as training writes them.

    file, config = parse_import(Config, argv=argv, description=__doc__, default_config=DEFAULT_CONFIG)
    model = HubertPretraining(config.model)
    begin_run(config, model, partial(import_lightning, model, path=file))

`train` with the same configuration goes on from there: weights, moments, number of updates, hence the learning rate.
Data begin anew, with the first step of the plan: where they stood elsewhere means nothing here.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn

from core import distributed
from core.checkpoint.store import CheckpointStore
from core.config.load import parse_args, to_yaml
from core.job.errors import said_plainly
from core.job.run import RecipeConfig, Run
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
from core.train.progress import Progress

T = TypeVar("T")

# Fill a model and its optimizer, on the CPU, and tell how many updates they have had; ValueError where it cannot.
Fill = Callable[[torch.optim.Optimizer], int]


class SpreadConfig(RecipeConfig, Protocol):
    """A recipe's configuration whose precision is known as well."""

    @property
    def parallel(self) -> ParallelConfig: ...


def parse_import(
    schema: type[T], *, argv: Sequence[str] | None, description: str | None, default_config: Path
) -> tuple[Path, T]:
    """The file to import, which is the first word, and the configuration that the others ask for.

    The file is taken apart from them because a name such as `epoch=2-step=9.ckpt` looks like a setting.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    file = words.pop(0) if words and not words[0].startswith("-") else None
    config = parse_args(schema, argv=words, prog="import FILE", description=description, default_config=default_config)
    if file is None:
        print("name the file to import first, then --config and settings", file=sys.stderr)
        sys.exit(ExitCode.CONFIG)
    return Path(file), config


def begin_run(config: SpreadConfig, model: nn.Module, fill: Fill) -> None:
    """Make the run `config.run.name` with one checkpoint, of `model` and its optimizer as `fill` leaves them.

    Alone, on a CPU. The run is there whole or not at all. What is wrong ends the process with its exit code: a run that
    exists already, one that has had more updates than train.max_steps, what `fill` says.
    """
    with said_plainly(), distributed.joined(device="cpu") as ranks:
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
    """What a save asks of an engine."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: ParallelConfig

    def save(self, directory: Path) -> Future[None]:
        return save_weights(self.model, self.optimizer, directory, group=None)

    def state(self) -> dict[str, Any]:
        is_scaled = self.config.precision in ("auto", "fp16")
        return LossScale(self.config.loss_scale, torch.device("cpu")).state() if is_scaled else {}
