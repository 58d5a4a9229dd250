"""A small transformer over characters or other tokens, for a text side that is trained along with the speech side."""

from dataclasses import field
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from core.config.schema import section
from core.models.attention import SelfAttention
from core.models.dropout import Dropout
from core.models.pooling import PoolingConfig, build_pooling
from core.models.subsampling import valid_frames

Count = Annotated[int, Field(ge=1)]


@section
class OwnTextConfig:
    """A transformer with norms before attention and feed-forward, and rotary positions; it begins at random."""

    kind: Literal["own"] = "own"
    dim: Count = 256
    num_layers: Count = 4
    num_heads: Count = 4
    ffn_dim: Count = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pooling: PoolingConfig = field(default_factory=lambda: PoolingConfig(kind="mean"))

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim} into even heads")


class TextEncoder(nn.Module):
    def __init__(self, config: OwnTextConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.output_dim = config.dim
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.pooling = build_pooling(config.pooling, config.dim, output_dim=config.dim)

    def forward(self, token_ids: Tensor, num_tokens: Tensor) -> Tensor:
        """Map token_ids (B, L) and num_tokens (B,) to (B, D); what is behind a text changes nothing."""
        is_valid = valid_frames(num_tokens, token_ids.size(1))
        x = self.dropout(self.embedding(token_ids))  # (B, L, D)
        for layer in self.layers:
            x = layer(x, is_valid)
        return self.pooling(self.norm(x), num_tokens)

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return list(self.layers)


class TextLayer(nn.Module):
    def __init__(self, config: OwnTextConfig) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention = SelfAttention(
            config.dim, num_heads=config.num_heads, dropout=config.dropout, causal=False, left_context=None, rotary=True
        )
        self.intermediate, self.output = nn.Linear(config.dim, config.ffn_dim), nn.Linear(config.ffn_dim, config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, is_valid: Tensor) -> Tensor:
        """Map x (B, L, D) and is_valid (B, L) to (B, L, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), is_valid))
        return x + self.dropout(self.output(F.gelu(self.intermediate(self.ffn_norm(x)))))
