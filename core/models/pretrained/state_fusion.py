"""Several hidden states of an encoder as one sequence: CSRef 2.0's GELUConv, an option beside the last state alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.subsampling import valid_frames


class StateFusion(nn.Module):
    """A 1 x 1 convolution over the states, batch normalization, GELU; each of `times` mixtures keeps its frames.

    Statistics are those of the valid frames of a micro-batch, each rank its own, so here alone a clip is not treated
    by itself: it does not go with GradCache, and the number of ranks matters. In evaluation the running ones serve.
    """

    def __init__(self, num_states: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_states, times, 1)
        self.norm = nn.BatchNorm2d(times)

    def forward(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map states (B, N, T, D), lengths (B,) to (B, T times, D), their lengths (B,): a frame's mixtures in turn."""
        mixed = self.conv(states).transpose(1, 2)  # (B, T, times, D)
        is_valid = valid_frames(lengths, mixed.size(1))  # (B, T)
        selected = self.norm(mixed[is_valid].unsqueeze(-1)).squeeze(-1)  # (valid frames, times, D)
        fused = torch.zeros_like(mixed, dtype=selected.dtype)
        fused[is_valid] = F.gelu(selected)
        return fused.flatten(1, 2), lengths * mixed.size(2)
