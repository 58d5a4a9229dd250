"""Gradients between backward and update: scaled for fp16, normed over all parameters, clipped; all on the device."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor

from core.config.schema import section


@section
class LossScaleConfig:
    """A scale that begins at 2^`initial_power` and doubles after `window` updates without a non-finite gradient.

    It halves at a non-finite one, but down to `minimum` only, and only at the `hysteresis`-th since it last doubled.
    """

    initial_power: Annotated[int, Field(ge=0, le=32)] = 16
    window: Annotated[int, Field(ge=1)] = 1000
    hysteresis: Annotated[int, Field(ge=1)] = 2
    minimum: Annotated[float, Field(gt=0)] = 1.0


class LossScale:
    """The rule of DeepSpeed's and Megatron's fp16 (Micikevicius 2018, arXiv:1710.03740, with hysteresis)."""

    def __init__(self, config: LossScaleConfig, device: torch.device) -> None:
        self._config = config
        self.scale = torch.tensor(2.0**config.initial_power, device=device)
        self._good_steps = torch.tensor(0.0, device=device)  # since the last bad step, or from 1 since it doubled
        self._patience = torch.tensor(float(config.hysteresis), device=device)  # bad steps until it halves

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        torch._foreach_mul_(local_parts(gradients), self.scale.reciprocal())

    def update(self, is_bad: Tensor) -> None:
        """Adapt the scale. `is_bad`: 1.0 where this step's gradients were not finite, else 0.0."""
        bad = is_bad > 0
        self._good_steps.add_(1.0).mul_(1 - is_bad)
        doubles = self._good_steps > self._config.window
        halves = bad & (self._patience <= 1)
        self.scale.mul_(torch.where(halves, 0.5, torch.where(doubles, 2.0, 1.0))).clamp_(min=self._config.minimum)
        self._patience.sub_(is_bad).clamp_(min=1.0)
        self._patience.masked_fill_(doubles, float(self._config.hysteresis))
        self._good_steps.masked_fill_(doubles, 1.0)

    def state(self) -> dict[str, Any]:
        return {
            "loss_scale": float(self.scale),
            "good_steps": float(self._good_steps),
            "patience": float(self._patience),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.scale.fill_(state["loss_scale"])
        self._good_steps.fill_(state["good_steps"])
        self._patience.fill_(state["patience"])


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, a scalar on their device; 0 for none.

    Sharded gradients (DTensor) of different meshes are normed mesh by mesh and combined.
    """
    by_mesh: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        by_mesh.setdefault(mesh, []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(group) for group in by_mesh.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if not whole:
        return torch.zeros(())
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))


def local_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what this rank holds of each tensor: its shard of a DTensor, all of a plain one."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def clip_gradients(gradients: Sequence[Tensor], *, max_norm: float | None) -> Tensor:
    """Scale all gradients in place by min(1, max_norm / norm); return the norm before. No host synchronization."""
    norm = gradient_norm(gradients)
    if max_norm is not None and gradients:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(local_parts(gradients), factor)
    return norm
