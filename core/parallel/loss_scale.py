"""Dynamic loss scaling for fp16, kept on the device so that no step waits for the host."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.parallel.clipping import local_parts

INITIAL = 65536.0
GROWTH_INTERVAL = 2000


class LossScale:
    """Halve after a step with a non-finite gradient, double after GROWTH_INTERVAL good ones (Micikevicius 2018)."""

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(INITIAL, device=device)
        self._good_steps = torch.tensor(0.0, device=device)

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        torch._foreach_mul_(local_parts(gradients), self.scale.reciprocal())

    def update(self, is_bad: Tensor) -> None:
        """`is_bad`: 1.0 where this step's gradients were not finite, else 0.0."""
        grown = (self._good_steps + 1 >= GROWTH_INTERVAL).float()
        factor = torch.where(is_bad > 0, 0.5, 1.0 + grown)
        self.scale.mul_(factor).clamp_(min=1.0)
        self._good_steps.add_(1.0).mul_((1 - is_bad) * (1 - grown))

    def state(self) -> dict[str, Any]:
        return {"loss_scale": float(self.scale), "good_steps": float(self._good_steps)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.scale.fill_(state["loss_scale"])
        self._good_steps.fill_(state["good_steps"])
