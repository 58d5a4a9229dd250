"""Another run: its configuration and its weights, to score it, look at its layers or begin with it.

run = TrainedRun.named("hubert_iter1", key="features.run", recipes="hubert_iter1 or hubert_iter2")
model = run.model(HubertConfig, HubertPretraining, ranks=ranks)           # in evaluation mode, without an optimizer
"""

import hashlib
import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from core.checkpoint.store import CheckpointConfig, CheckpointStore
from core.config.load import load_section
from core.config.schema import ConfigError, section
from core.distributed import Ranks
from core.parallel.preparation import COMPUTE_DTYPE, compute_in
from core.parallel.settings import Precision, resolve_precision
from core.parallel.weights import load_weights
from core.rundir.checkpoints import newest_complete
from core.rundir.environment import runs_root
from core.rundir.files import CHECKPOINTS, CONFIG

logger = logging.getLogger(__name__)

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


@section
class PretrainedConfig:
    """A run to begin with: its name under `runs/` or its directory.

    `checkpoint`: the hash of its weights to insist on, as the log says it; null takes the newest.
    """

    run: str
    checkpoint: str | None = None


@dataclass(frozen=True)
class TrainedRun:
    """A run of `recipes`; `setting` is how this run's configuration names it, for messages."""

    directory: Path
    recipes: str
    setting: str

    @classmethod
    def named(cls, name: str, *, key: str, recipes: str) -> "TrainedRun":
        """Return the run that the setting `key` names, by its name under `runs/` or its directory."""
        return cls(runs_root() / name, recipes, f"{key}={name}")

    def section(self, schema: type[C], name: str) -> C:
        """Return a section ("data.features") of its configuration. ValueError where it has none like that."""
        problem = f"{self.directory} is not the directory of a trained run"
        try:
            if (self.directory / CONFIG).exists():
                return load_section(schema, self.directory / CONFIG, name)
        except ConfigError as error:
            problem = error.problems[0]
        raise ValueError(f"{self.setting} is no run of {self.recipes}: {problem}")

    def model(self, schema: type[C], build: Callable[[C], M], *, ranks: Ranks) -> M:
        """Return what `build` makes of its section `model`, with its newest weights, as `load_trained` leaves it."""
        model = build(self.section(schema, "model"))
        load_trained(model, self.directory, ranks=ranks)
        return model

    def refuse_differences(self, there: Any, here: Any, *, key: str, may_differ: Collection[str] = ()) -> None:
        """Raise ValueError where a section of this run, `key`, asks for another model than that of the other run.

        Dropout is chosen anew, and so is what `may_differ` names.
        """
        theirs, ours = asdict(there), asdict(here)
        names = [name for name in ours if "drop" not in name and name not in may_differ]
        problems = [
            f"{key}.{name}: {theirs.get(name)} there, {ours[name]} here"
            for name in names
            if theirs.get(name) != ours[name]
        ]
        if problems:
            raise ValueError(f"{self.setting} has another encoder: {'; '.join(problems)}")


def load_weights_of_run(
    module: nn.Module, run: TrainedRun, whole: nn.Module, part: str, *, checkpoint: str | None, ranks: Ranks
) -> None:
    """Begin with the newest weights of another run: those of `part`, a sub-module of its model, go into `module`.

    `whole` is that model, which takes the weights first; `checkpoint` the hash of them all that is insisted on. All
    ranks together. ValueError where the hash is another.
    """
    load_trained(whole, run.directory, ranks=ranks)
    found = weights_hash(whole)
    if checkpoint not in (None, found):
        raise ValueError(f"pretrained.checkpoint={checkpoint}: the newest weights of {run.directory} are {found}")
    module.load_state_dict(whole.get_submodule(part).state_dict())
    logger.info("begins with the weights %s of %s", found, run.directory)


def load_trained(model: nn.Module, directory: Path, *, ranks: Ranks, precision: Precision = "fp32") -> int:
    """Put the weights of a run's newest checkpoint into `model`, on this rank's device, and freeze it; return its step.

    `precision`: that of its computations. All ranks together. ValueError where there is no complete checkpoint,
    CheckpointError for a damaged one and for one of another model.
    """
    newest = ranks.from_first(newest_complete(directory / CHECKPOINTS))
    if newest is None:
        raise ValueError(f"{directory} has no complete checkpoint; train it first, or name another run")
    model.to(ranks.device).eval().requires_grad_(False)
    if (dtype := COMPUTE_DTYPE.get(resolve_precision(precision, ranks))) is not None:
        compute_in(model, dtype, device_type=ranks.device.type)
    store = CheckpointStore(directory / CHECKPOINTS, CheckpointConfig(), ranks=ranks, token=0)
    store.load_weights_only(_Weights(model, ranks), newest.directory)
    return newest.step


def weights_hash(model: nn.Module) -> str:
    """Return a hash of the names and values of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Weights:
    """A model as that which a checkpoint is read into."""

    model: nn.Module
    ranks: Ranks

    def load(self, directory: Path, *, weights_only: bool = False) -> None:
        assert weights_only
        load_weights(self.model, None, directory, group=self.ranks.votes, weights_only=True)

    def save(self, directory: Path) -> Future[None]:
        raise AssertionError(f"{directory}: these weights belong to another run")
