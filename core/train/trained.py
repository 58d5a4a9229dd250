"""The weights of a run, to score it, look at its layers or begin from it: without its optimizer, in evaluation mode."""

import hashlib
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from core.checkpoint.store import CheckpointConfig, CheckpointStore
from core.config.schema import section
from core.distributed import Ranks
from core.parallel.preparation import COMPUTE_DTYPE, compute_in
from core.parallel.settings import Precision, resolve_precision
from core.parallel.weights import load_weights
from core.rundir.checkpoints import newest_complete
from core.rundir.files import CHECKPOINTS, CONFIG


@section
class PretrainedConfig:
    """A run to begin with: its name under `runs/` or its directory. `checkpoint`: the hash of its weights to insist on,
    as the log says it; null takes the newest."""

    run: str
    checkpoint: str | None = None


def read_section(directory: Path, name: str) -> dict[str, Any]:
    """A section of the configuration that a run was trained with. ValueError where there is none."""
    path = directory / CONFIG
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))[name]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{directory} is not the directory of a trained run ({error}); name one") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {name}: expected a section, got {found!r}")
    return found


def load_trained(model: nn.Module, directory: Path, *, ranks: Ranks, precision: Precision = "fp32") -> int:
    """Put the weights of a run's newest checkpoint into `model`, on this rank's device, and freeze it; of which step.

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


def load_pretrained(model: nn.Module, directory: Path, config: PretrainedConfig, *, ranks: Ranks) -> str:
    """`load_trained`, then the hash of the weights. ValueError where `config` insists on others."""
    load_trained(model, directory, ranks=ranks)
    found = weights_hash(model)
    if config.checkpoint not in (None, found):
        raise ValueError(f"pretrained.checkpoint={config.checkpoint}: the newest weights of {directory} are {found}")
    return found


def weights_hash(model: nn.Module) -> str:
    """Of names and values of all parameters and buffers."""
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
