"""HuBERT's transformer: projection of the convolutions' features, positions by a wide convolution, layers."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from core.models.dropout import Dropout
from core.models.hubert.config import HubertEncoderConfig


class FeatureProjection(nn.Module):
    def __init__(self, config: HubertEncoderConfig) -> None:
        super().__init__()
        channels = config.conv_layers[-1][0]
        self.layer_norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, config.dim)
        self.dropout = Dropout(config.projection_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, D)."""
        return self.dropout(self.projection(self.layer_norm(features)))


class HubertEncoder(nn.Module):
    """A wide convolution that encodes positions, then transformer layers."""

    def __init__(self, config: HubertEncoderConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.pos_conv_embed = PositionalConv(config)
        self.layer_norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(HubertLayer(config) for _ in range(config.num_layers))

    def forward(
        self, x: Tensor, is_valid: Tensor, *, dropped_layers: Collection[int], num_layers: int | None
    ) -> Tensor:
        """Map x (B, T, D), with zeros where is_valid (B, T) is False, to (B, T, D)."""
        x = x + self.pos_conv_embed(x)
        if not self.pre_norm:
            x = self.layer_norm(x)
        x = self.dropout(x)
        is_first = torch.arange(x.size(1), device=x.device) == 0  # an empty clip must see something, or be NaN
        is_seen = (is_valid | is_first)[:, None, None]  # (B, 1, 1, T)
        for number, layer in enumerate(self.layers):
            if number == num_layers:
                return x
            x = layer(x, is_seen, is_dropped=number in dropped_layers)
        return self.layer_norm(x) if self.pre_norm and num_layers is None else x


class PositionalConv(nn.Module):
    """The GELU of a convolution whose weight is normalized for each tap (Salimans and Kingma 2016)."""

    def __init__(self, config: HubertEncoderConfig) -> None:
        super().__init__()
        kernel = config.position_kernel
        conv = nn.Conv1d(config.dim, config.dim, kernel, padding=kernel // 2, groups=config.position_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (config.dim * kernel)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D); an even kernel makes a frame too many."""
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.size(1)]).transpose(1, 2)


class HubertLayer(nn.Module):
    """Attention and feed-forward, each added to its input; norms after each (base) or before each (larger models)."""

    def __init__(self, config: HubertEncoderConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = HubertAttention(config)
        self.dropout = Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, is_seen: Tensor, *, is_dropped: bool = False) -> Tensor:
        """Map x (B, T, D) and is_seen (B, 1, 1, T) to (B, T, D).

        A dropped layer gives x back and computes nothing. It is called all the same: FSDP2 fails on a module whose
        parameters it never gathered.
        """
        if is_dropped:
            return skip_layer(x, self.parameters())
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.layer_norm(x), is_seen))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.layer_norm(x + self.dropout(self.attention(x, is_seen)))
        return self.final_layer_norm(x + self.feed_forward(x))


class HubertAttention(nn.Module):
    def __init__(self, config: HubertEncoderConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (small_linear(config.dim, config.dim) for _ in range(4))

    def forward(self, x: Tensor, is_seen: Tensor) -> Tensor:
        """Map x (B, T, D) and is_seen (B, 1, 1, T) to (B, T, D)."""
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=is_seen, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: HubertEncoderConfig) -> None:
        super().__init__()
        self.intermediate_dense = small_linear(config.dim, config.ffn_dim)
        self.output_dense = small_linear(config.ffn_dim, config.dim)
        self.intermediate_dropout = Dropout(config.activation_dropout)
        self.output_dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        hidden = self.intermediate_dropout(F.gelu(self.intermediate_dense(x)))
        return self.output_dropout(self.output_dense(hidden))


def small_linear(input_dim: int, output_dim: int) -> nn.Linear:
    """Return a layer that begins as BERT's do: weights of standard deviation 0.02, biases 0."""
    linear = nn.Linear(input_dim, output_dim)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def skip_layer(x: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return x; the parameters get gradients of 0, as every engine expects of each parameter in each backward."""
    return _PassedOver.apply(x, *parameters)


class _PassedOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: nn.Parameter) -> Tensor:
        ctx.parameters = parameters
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        zeros = (torch.zeros_like(p) if p.requires_grad else None for p in ctx.parameters)
        return gradients[0], *zeros
