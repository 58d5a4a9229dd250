"""Dropout that draws 16 bits an element.

On CPU random numbers are drawn one after another, whatever the number of threads: with a number an element, dropout
takes up to a fifth of a training step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Module):
    """A faster nn.Dropout whose p is rounded to 1 / 65536."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Set a share p of x, of any shape, to zero and divide the rest by 1 - p; return x in evaluation."""
        dropped_levels = round(self.p * _LEVELS)
        if not self.training or dropped_levels == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # which has fast numbers of its own
            return F.dropout(x, self.p)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # each all 64 bits
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform from -2^15
        is_kept = levels >= dropped_levels - _LEVELS // 2
        return x * (is_kept.to(x.dtype) * (_LEVELS / (_LEVELS - dropped_levels)))
