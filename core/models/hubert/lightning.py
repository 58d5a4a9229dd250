"""Checkpoints of the predecessor, torchaudio's recipe under Lightning and Habana's version of it: weights and moments.

    step = import_lightning(model, optimizer, path=Path("epoch=220-step=241553.ckpt"))      # AdamW goes on where it was

On Gaudi the first convolutions may be Conv2d over (1, time): their weights and moments lose that axis here. Habana's
FusedAdamW counts its steps for the whole group and leaves those of the parameters at 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.models.hubert.model import HubertPretraining
from core.models.hubert.names import as_conv1d, import_state, listed, own_tensors, places, read_tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class LightningCheckpoint:
    """The `tensors` by their names, and the moments `exp_avg` and `exp_avg_sq` of each after `step` updates."""

    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    step: int


def import_lightning(model: HubertPretraining, optimizer: torch.optim.Optimizer, *, path: Path) -> int:
    """Fill a model and its AdamW from a file, and return their number of updates. ValueError where it does not fit."""
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise ValueError(
            f"{path} has the moments of an AdamW, {type(optimizer).__name__} has none: set optim.name=adamw"
        )
    checkpoint = read_lightning(path)
    if kept := import_state(model, checkpoint.tensors, "torchaudio"):
        raise ValueError(f"{path} is of a model without {listed(kept)}: name a checkpoint of the pretraining")
    return import_moments(model, optimizer, checkpoint)


def read_lightning(path: Path) -> LightningCheckpoint:
    """Read a file; ValueError if it holds more than tensors and plain values, or not the states of one AdamW."""
    content = read_tensors(path)
    try:
        tensors, (optimizer,) = dict(content["state_dict"]), content["optimizer_states"]
        groups = optimizer["param_groups"]
        numbers = [number for group in groups for number in group["params"]]
        states = [optimizer["state"][number] for number in numbers]
        steps = {int(group.get("step", 0)) for group in groups} | {int(state["step"]) for state in states}
        moments = [{name: state[name] for name in _MOMENTS} for state in states]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint of Lightning with one AdamW in it ({error!r})") from None
    if numbers != list(range(len(tensors))):  # parameters come in the order of their names: there are no buffers
        raise ValueError(f"{path}: its optimizer has {len(numbers)} parameters, the model has {len(tensors)}")
    if len(steps - {0}) != 1:
        raise ValueError(f"{path}: its parameters have had different numbers of updates: {sorted(steps)}")
    return LightningCheckpoint(tensors, dict(zip(tensors, moments, strict=True)), step=max(steps))


@torch.no_grad()
def import_moments(model: HubertPretraining, optimizer: torch.optim.Optimizer, checkpoint: LightningCheckpoint) -> int:
    """Give each parameter of an AdamW its moments, and return the number of updates it has had.

    ValueError, with nothing changed, for parameters without moments, for moments of other parameters or sizes.
    """
    own, place = own_tensors(model), places(model, "torchaudio")
    found: dict[str, dict[str, Tensor]] = {}
    problems = []
    for theirs, moments in checkpoint.moments.items():
        name = place(theirs)
        if name is None:
            problems.append(f"{theirs} is unexpected")
            continue
        fitted = {moment: as_conv1d(tensor, own[name].shape) for moment, tensor in moments.items()}
        problems += [
            f"{moment} of {theirs} is {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
            for moment, tensor in fitted.items()
            if tensor.shape != own[name].shape
        ]
        found[name] = fitted
    parameters = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    wanted = {name: parameter for name, parameter in own.items() if id(parameter) in parameters}
    problems += [f"{name} has no moments" for name in wanted if name not in found]
    if problems:
        raise ValueError(f"these moments do not fit the model: {listed(problems)}")
    for name, parameter in wanted.items():
        state: dict[str, Any] = {
            moment: tensor.to(parameter, copy=True, memory_format=torch.preserve_format)
            for moment, tensor in found[name].items()
        }
        optimizer.state[parameter] = {"step": torch.tensor(float(checkpoint.step), device=parameter.device), **state}
    return checkpoint.step
