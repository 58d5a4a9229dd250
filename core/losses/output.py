"""What a loss function hands to the training loop."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Metrics = Mapping[str, tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True)
class LossOutput:
    """A loss as a SUM over the micro-batch's targets; the loop divides by the number of targets of the whole step.

    `metrics`: name -> (numerator, denominator). Both are added up over micro-batches and ranks before the division,
    so a tensor here is detached and stays on its device: reading it would wait for the device.
    """

    loss_sum: Tensor  # scalar
    metrics: Metrics = field(default_factory=dict)
