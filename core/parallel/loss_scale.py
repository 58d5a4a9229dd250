"""Dynamic loss scaling for fp16, kept on the device so that no step waits for the host."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from core.config.schema import section
from core.parallel.clipping import local_parts


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
