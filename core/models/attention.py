"""Multi-head self-attention over padded sequences, by scaled_dot_product_attention; causal, it also streams."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionState(NamedTuple):
    """The past that a causal attention keeps: keys and values (B, heads, frames, head_dim), and the frames seen."""

    keys: Tensor
    values: Tensor
    num_seen: int


class SelfAttention(nn.Module):
    """Attention in which, if `causal`, a frame sees itself and at most `left_context` (None: all) before it."""

    def __init__(
        self, dim: int, *, num_heads: int, dropout: float, causal: bool, left_context: int | None, rotary: bool
    ) -> None:
        super().__init__()
        if dim % num_heads or (rotary and dim // num_heads % 2):
            raise ValueError(f"num_heads={num_heads} must divide the width {dim}" + " into even heads" * rotary)
        self.num_heads, self.dropout, self.causal, self.rotary = num_heads, dropout, causal, rotary
        self.left_context = left_context
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, is_valid: Tensor) -> Tensor:
        """Map x (B, T, dim) and is_valid (B, T) bool to (B, T, dim)."""
        q, k, v = self._heads(x, first=0)
        num_frames = x.size(1)
        if self.causal and self.left_context is None:  # padding is at the end: no valid frame sees it
            return self._attend(q, k, v, mask=None, is_causal=True)
        if self.causal:
            mask = self._window(num_frames, num_frames, device=x.device)
        else:
            is_first = torch.arange(num_frames, device=x.device) == 0  # an empty sequence must see something, or be NaN
            mask = (is_valid | is_first)[:, None, None]  # (B, 1, 1, T)
        return self._attend(q, k, v, mask=mask)

    def stream(self, x: Tensor, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """Map the next T frames to (B, T, dim), and return the keys and values to keep as well."""
        if not self.causal:
            raise ValueError("causal=false: attention sees the whole sequence; it cannot stream")
        num_seen = 0 if state is None else state.num_seen
        q, k, v = self._heads(x, first=num_seen)
        if state is not None:
            k, v = torch.cat([state.keys, k], dim=2), torch.cat([state.values, v], dim=2)
        y = self._attend(q, k, v, mask=self._window(x.size(1), k.size(2), device=x.device))
        first_kept = 0 if self.left_context is None else max(0, k.size(2) - self.left_context)
        return y, AttentionState(k[:, :, first_kept:], v[:, :, first_kept:], num_seen + x.size(1))

    def _heads(self, x: Tensor, *, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, heads, T, head_dim), of frames `first`, `first` + 1, ..."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            angles = _rotary_angles(first, x.size(1), k.size(-1), device=x.device)
            q, k = _rotate(q, angles), _rotate(k, angles)
        return q, k, v

    def _window(self, num_queries: int, num_keys: int, *, device: torch.device) -> Tensor:
        """Return a mask (queries, keys), True where the key is seen; the last key belongs to the last query."""
        query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        key = torch.arange(num_keys, device=device)[None, :]
        is_seen = key <= query
        return is_seen if self.left_context is None else is_seen & (query - key <= self.left_context)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        return self.output(y.transpose(1, 2).flatten(2))


def _rotary_angles(first: int, num_frames: int, head_dim: int, *, device: torch.device) -> Tensor:
    """Return the angle of each frame and pair of features, (T, head_dim / 2) fp32 (Su et al., arXiv:2104.09864)."""
    frame = torch.arange(first, first + num_frames, device=device, dtype=torch.float32)
    frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    return frame[:, None] * frequency


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (x[..., i], x[..., i + half]) of x (B, heads, T, head_dim) by their angles."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
