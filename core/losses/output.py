"""What a loss function hands to the training loop, and how the loop keeps one that counts for nothing from harm."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Metrics = Mapping[str, tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True)
class LossOutput:
    """A loss as a SUM over the micro-batch's targets; the loop divides by the number of targets of the whole step.

    `metrics`: name -> (numerator, denominator). Both are added up over micro-batches and ranks before the division,
    so a tensor here is detached and stays on its device: reading it would wait for the device.
    """

    loss_sum: Tensor  # scalar
    metrics: Metrics = field(default_factory=dict)


@contextmanager
def zero_gradients(model: nn.Module) -> Iterator[None]:
    """Replace the gradients of all that the model returns by exactly 0, for an empty micro-batch whose loss may be NaN.

    To multiply the loss by 0 is not enough: 0 x NaN is NaN. Tensors may be in tuples, lists and dicts.
    """

    def hook(_: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(torch.zeros_like)

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
