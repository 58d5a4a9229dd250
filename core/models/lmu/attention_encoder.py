"""The LMU-ASR encoder: attention, then an LMU, in every layer; a strided convolution after every second layer.

The model of the PyTorch LMU-ASR project, with its sizes as defaults. Attention has a residual, the LMU has none; only
the LMU knows the order of frames.
"""

from typing import Annotated, Any, Literal, NamedTuple, cast

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.schema import section
from core.models.attention import AttentionState, SelfAttention
from core.models.dropout import Dropout
from core.models.lmu.cell import LMU, LMUCellConfig, LMUState
from core.models.lmu.layer import ParallelLMU
from core.models.lmu.memory import Form
from core.models.subsampling import valid_frames


@section
class AttentionLMUEncoderConfig:
    """Sizes of an AttentionLMUEncoder."""

    kind: Literal["attention_lmu"] = "attention_lmu"
    input_dim: int = 80
    dim: int = 384
    output_dim: int = 384
    num_layers: int = 3
    num_heads: int = 6
    lmu: Literal["parallel", "exact"] = "parallel"  # exact: the cell with recurrence through the hidden state
    lmu_form: Form = "auto"  # of the parallel LMU
    order: int = 192
    memory_channels: int = 1
    theta: float = 1000.0  # in frames, whatever the subsampling before the layer
    downsampling: Annotated[int, pydantic.Field(ge=1)] = 2  # after every second layer; 1: none
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    causal: bool = False  # attention sees no future: can stream
    left_context: int | None = None  # frames of the past that attention sees, when causal; null: all

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim}")
        if self.left_context is not None and not self.causal:
            raise ValueError(f"left_context={self.left_context} must be null unless causal=true")
        if self.lmu == "exact" and self.lmu_form != "auto":
            raise ValueError(f"lmu_form={self.lmu_form} must be auto with lmu=exact, which has no parallel form")

    def output_lengths(self, num_frames: Any) -> Any:
        """Return the output frames of `num_frames` feature frames: an int, or an array or tensor of them."""
        for _ in range(self.num_layers // 2):
            num_frames = num_frames // self.downsampling
        return num_frames


class LayerState(NamedTuple):
    """The state of a layer between two chunks of a stream."""

    attention: AttentionState | None = None
    lmu: Tensor | LMUState | None = None
    waiting: Tensor | None = None  # (B, fewer than downsampling, dim): frames that do not fill a stride yet


class AttentionLMUEncoder(nn.Module):
    """The encoder from log-mel features to hidden frames."""

    def __init__(self, config: AttentionLMUEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.output_dim
        self.input = nn.Linear(config.input_dim, config.dim)
        self.layers = nn.ModuleList(
            AttentionLMULayer(config, downsampling=config.downsampling if i % 2 else 1)
            for i in range(config.num_layers)
        )
        self.output = nn.Linear(config.dim, config.output_dim)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, T, input_dim) and num_frames (B,) to hidden (B, T', output_dim) and lengths (B,)."""
        x, lengths = self.input(features), num_frames
        for layer in cast("list[AttentionLMULayer]", self.layers):
            x = layer(x, valid_frames(lengths, x.size(1)))
            lengths = lengths // layer.downsampling
        return self.output(x), lengths

    def stream(self, features: Tensor, state: list[LayerState] | None = None) -> tuple[Tensor, list[LayerState]]:
        """Map the next frames (B, t, input_dim) after `state` (None: the beginning) to hidden frames and state.

        The hidden frames are those that the features complete: perhaps none, over all chunks the same as of forward.
        """
        if not self.config.causal:
            raise ValueError("causal=false: attention sees the whole sequence; the encoder cannot stream")
        x, before, after = self.input(features), state or [LayerState()] * len(self.layers), []
        for layer, layer_state in zip(cast("list[AttentionLMULayer]", self.layers), before, strict=True):
            if x.size(1):
                x, layer_state = layer.stream(x, layer_state)
            after.append(layer_state)
        return self.output(x), after

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return list(self.layers)

    def output_lengths(self, num_frames: Any) -> Any:
        return self.config.output_lengths(num_frames)


class AttentionLMULayer(nn.Module):
    """norm(x + attention(x)) -> LMU -> norm -> dropout [-> strided convolution]."""

    def __init__(self, config: AttentionLMUEncoderConfig, *, downsampling: int) -> None:
        super().__init__()
        dim, self.downsampling = config.dim, downsampling
        self.attention = SelfAttention(
            dim,
            num_heads=config.num_heads,
            dropout=config.dropout,
            causal=config.causal,
            left_context=config.left_context,
            rotary=False,
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.lmu = _build_lmu(config)
        self.lmu_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)
        self.conv = nn.Conv1d(dim, dim, downsampling, stride=downsampling) if downsampling > 1 else None

    def forward(self, x: Tensor, is_valid: Tensor) -> Tensor:
        """Map x (B, T, dim) and is_valid (B, T) bool to (B, max(1, T // downsampling), dim)."""
        x = self.attention_norm(x + self.dropout(self.attention(x, is_valid)))
        y = self.lmu(x)[0] if isinstance(self.lmu, LMU) else self.lmu(x)
        x = self.dropout(self.lmu_norm(y))
        if self.conv is None:
            return x
        missing = max(0, self.downsampling - x.size(1))  # a batch of too short sequences: one frame, of length 0
        return self.conv(F.pad(x, (0, 0, 0, missing)).transpose(1, 2)).transpose(1, 2)

    def stream(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Map the next T >= 1 frames of a causal layer to the frames they complete and the state."""
        y, attention = self.attention.stream(x, state.attention)
        y, lmu = self._stream_lmu(self.attention_norm(x + y), state.lmu)
        x = self.lmu_norm(y)
        if self.conv is None:
            return x, LayerState(attention, lmu)
        x = x if state.waiting is None else torch.cat([state.waiting, x], dim=1)
        num_used = x.size(1) // self.downsampling * self.downsampling
        waiting, x = x[:, num_used:], x[:, :num_used]
        if num_used:
            x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return x, LayerState(attention, lmu, waiting)

    def _stream_lmu(self, x: Tensor, state: Tensor | LMUState | None) -> tuple[Tensor, Tensor | LMUState]:
        if isinstance(self.lmu, LMU):
            assert state is None or isinstance(state, LMUState)
            return self.lmu(x, state)
        assert state is None or isinstance(state, Tensor)
        return self.lmu.stream(x, state)


def _build_lmu(config: AttentionLMUEncoderConfig) -> LMU | ParallelLMU:
    if config.lmu == "exact":
        cell = LMUCellConfig(
            input_dim=config.dim,
            hidden_dim=config.dim,
            order=config.order,
            theta=config.theta,
            memory_channels=config.memory_channels,
        )
        return LMU(cell)
    return ParallelLMU(
        input_dim=config.dim,
        hidden_dim=config.dim,
        order=config.order,
        theta=config.theta,
        memory_channels=config.memory_channels,
        form=config.lmu_form,
    )
