"""HuBERT's convolutions from a waveform to 50 frames a second, exact under padding.

The only layer that looks along a whole utterance is the GroupNorm after the first convolution of the base model; here
its statistics are those of the valid frames, so a clip gives the same features alone and in any batch.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.subsampling import valid_frames

ConvNorm = Literal["group", "layer"]


def conv_lengths(num_samples: Any, layers: Sequence[Sequence[int]]) -> Any:
    """Return the frames after each convolution of (channels, kernel, stride), for an int or an array of samples."""
    lengths, length = [], num_samples
    for _, kernel, stride in layers:
        length = (length - kernel) // stride + 1
        length = length * (length > 0)
        lengths.append(length)
    return lengths


class ConvFrontEnd(nn.Module):
    """The convolutions. `norm` "group": after the first, a channel a group; "layer": after each, over the channels."""

    def __init__(self, layers: Sequence[Sequence[int]], *, norm: ConvNorm, bias: bool) -> None:
        super().__init__()
        self.layers = [tuple(layer) for layer in layers]
        channels = [1, *(layer[0] for layer in self.layers)]
        self.conv_layers = nn.ModuleList()
        for number, ((before, after), (_, kernel, stride)) in enumerate(
            zip(pairwise(channels), self.layers, strict=True)
        ):
            conv = nn.Conv1d(before, after, kernel, stride=stride, bias=bias)
            nn.init.kaiming_normal_(conv.weight)
            if norm == "group":
                self.conv_layers.append(ConvLayer(conv, MaskedGroupNorm(after) if number == 0 else None))
            else:
                self.conv_layers.append(ConvLayer(conv, ChannelNorm(after)))

    def forward(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio (B, S), num_samples (B,) to features (B, T, C), lengths (B,); behind them is anything finite."""
        audio = audio.masked_fill(~valid_frames(num_samples, audio.size(1)), 0.0)
        x = F.pad(audio, (0, max(0, self._window() - audio.size(1))))[:, None]  # (B, 1, S), at least one frame
        lengths = conv_lengths(num_samples, self.layers)
        for layer, length in zip(self.conv_layers, lengths, strict=True):
            x = layer(x, length)
        return x.transpose(1, 2), lengths[-1]

    def _window(self) -> int:
        window, hop = 1, 1
        for _, kernel, stride in self.layers:
            window, hop = window + (kernel - 1) * hop, hop * stride
        return window


class ConvLayer(nn.Module):
    """A convolution, a norm (or none) and a GELU."""

    def __init__(self, conv: nn.Conv1d, layer_norm: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.layer_norm = conv, layer_norm

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map x (B, C, T) to (B, C', T'), whose valid lengths (B,) are given."""
        x = self.conv(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x, lengths)
        return F.gelu(x)


class ChannelNorm(nn.LayerNorm):
    """A LayerNorm of each frame over its channels, for (B, C, T)."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class MaskedGroupNorm(nn.Module):
    """A GroupNorm with a group a channel, over the valid frames of (B, C, T); 0 times the weight behind them."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        is_valid = valid_frames(lengths, x.size(2))  # (B, T)
        return _NormalizeChannels.apply(x, is_valid, lengths, self.weight, self.bias, self.eps)


class _NormalizeChannels(torch.autograd.Function):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias over the valid frames, in fp32 at least, in few passes.

    This tensor is the largest of the model: one that is normalized by elementary operations is kept four times.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, is_valid: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            full = x.to(torch.promote_types(x.dtype, torch.float32))
            valid = is_valid.to(full.dtype)  # (B, T)
            count = lengths.clamp(min=1)[:, None].to(full.dtype)  # (B, 1)
            mean = torch.einsum("bct,bt->bc", full, valid) / count
            normalized = (full - mean[..., None]).mul_(valid[:, None])
            variance = torch.linalg.vector_norm(normalized, dim=2).square() / count
            scale = (variance + eps).rsqrt()  # (B, C)
            normalized.mul_(scale[..., None])
            y = torch.addcmul(bias.to(full.dtype)[:, None], normalized, weight.to(full.dtype)[:, None])
            ctx.save_for_backward(normalized, valid, count, scale, weight)
            return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normalized, valid, count, scale, weight = ctx.saved_tensors
        with torch.autocast(normalized.device.type, enabled=False):
            g = gradients[0].to(normalized.dtype)
            along = torch.linalg.vecdot(g, normalized)  # (B, C): normalized is 0 behind the valid frames
            total = torch.einsum("bct,bt->bc", g, valid)
            factor = weight.to(g.dtype) * scale  # (B, C)
            dx = torch.addcmul((total / count)[..., None], normalized, (along / count)[..., None])
            dx = torch.sub(g, dx, out=dx).mul_(factor[..., None]).mul_(valid[:, None])
            # behind the valid frames y is the bias: its gradient there counts
            return dx.to(gradients[0].dtype), None, None, along.sum(0).to(weight.dtype), g.sum((0, 2)), None
