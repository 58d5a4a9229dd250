"""Convolutions in time that padding cannot touch: strided ones before an encoder, a depthwise one inside its blocks.

Each masks what it reads, keeps exact lengths, and with `causal` also runs chunk by chunk with the same result.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SubsamplingKind = Literal["conv1d", "conv2d"]
SUBSAMPLING = 4  # feature frames an output frame
_KERNEL = {"conv1d": 5, "conv2d": 3}
_STRIDE = 2


def valid_frames(num_frames: Tensor, max_frames: int) -> Tensor:
    """Map (B,) to (B, max_frames) bool, True where a frame is within its sequence."""
    return torch.arange(max_frames, device=num_frames.device) < num_frames[:, None]


class ConvSubsampling(nn.Module):
    """Two convolutions of stride 2 over log-mel features: T frames become ceil(T / 4)."""

    def __init__(self, *, kind: SubsamplingKind, input_dim: int, channels: int, output_dim: int, causal: bool) -> None:
        super().__init__()
        self.causal, self.kernel = causal, _KERNEL[kind]
        side = (self.kernel - 1) // 2
        if kind == "conv1d":
            self.convs = nn.ModuleList([nn.Conv1d(input_dim, channels, self.kernel, stride=_STRIDE)])
            self.convs.append(nn.Conv1d(channels, output_dim, self.kernel, stride=_STRIDE))
            projected = output_dim
        else:
            self.convs = nn.ModuleList(
                nn.Conv2d(c, channels, self.kernel, stride=_STRIDE, padding=(0, side)) for c in (1, channels)
            )
            projected = channels * -(-input_dim // _STRIDE**2)
        self.is_2d = kind == "conv2d"
        self.projection = nn.Linear(projected, output_dim)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, T, input_dim), num_frames (B,) to (B, ceil(T / 4), output_dim) and lengths (B,)."""
        x = self._channels_first(features)
        before = self.kernel - 1 if self.causal else self.kernel // 2
        for conv in self.convs:
            is_padding = ~valid_frames(num_frames, x.size(2))[:, None]  # (B, 1, T)
            x = x.masked_fill(is_padding[..., None] if self.is_2d else is_padding, 0.0)
            x = F.gelu(conv(_pad_time(x, before, self.kernel - 1 - before)))
            num_frames = -(-num_frames // _STRIDE)
        return self._project(x), num_frames

    def stream(self, features: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Return the output frames, perhaps none, that the next T frames complete, and the inputs to keep."""
        x, kept = self._channels_first(features), []
        for i, conv in enumerate(self.convs):
            x = _pad_time(x, self.kernel - 1, 0) if state is None else torch.cat([state[i], x], dim=2)
            num_outputs = max(0, (x.size(2) - self.kernel) // _STRIDE + 1)
            kept.append(x[:, :, num_outputs * _STRIDE :])
            if num_outputs:
                x = F.gelu(conv(x))
            else:
                bins = [-(-x.size(3) // _STRIDE)] if self.is_2d else []
                x = x.new_zeros([x.size(0), cast("nn.Conv1d | nn.Conv2d", conv).out_channels, 0, *bins])
        return self._project(x), kept

    def _channels_first(self, features: Tensor) -> Tensor:
        return features[:, None] if self.is_2d else features.transpose(1, 2)

    def _project(self, x: Tensor) -> Tensor:
        return self.projection(x.transpose(1, 2).flatten(2))


class DepthwiseConv(nn.Module):
    """A filter for each channel of (B, T, channels); symmetric, or looking back only with `causal`."""

    def __init__(self, channels: int, *, kernel: int, causal: bool) -> None:
        super().__init__()
        self.before = kernel - 1 if causal else kernel // 2
        self.after = kernel - 1 - self.before
        self.conv = nn.Conv2d(channels, channels, (1, kernel), groups=channels)  # on CPU twice as fast as Conv1d

    def forward(self, x: Tensor, is_valid: Tensor) -> Tensor:
        """Map x (B, T, channels) and is_valid (B, T) to (B, T, channels)."""
        return self._convolve(F.pad(x.masked_fill(~is_valid[..., None], 0.0), (0, 0, self.before, self.after)))

    def stream(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the next T frames and the last kernel - 1 before to (B, T, channels) and the frames to keep."""
        x = F.pad(x, (0, 0, self.before, 0)) if state is None else torch.cat([state, x], dim=1)
        return self._convolve(x), x[:, x.size(1) - self.before :]

    def _convolve(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)


def _pad_time(x: Tensor, before: int, after: int) -> Tensor:
    """Add zeros around dimension 2."""
    return F.pad(x, (0, 0) * (x.dim() - 3) + (before, after))
