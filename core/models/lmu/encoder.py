"""A speech encoder of pre-norm residual blocks, at a quarter of the frame rate.

Each block is [attention] + LMU + [gated convolution] + feed-forward; forwards and backwards in time, or causal.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

import pydantic
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.schema import section
from core.models.attention import AttentionState, SelfAttention
from core.models.dropout import Dropout
from core.models.lmu.layer import ParallelLMU
from core.models.lmu.memory import Form
from core.models.subsampling import SUBSAMPLING, ConvSubsampling, DepthwiseConv, SubsamplingKind, valid_frames


@section
class LMUEncoderConfig:
    """Sizes of an LMUEncoder; times are in frames after the subsampling."""

    kind: Literal["lmu"] = "lmu"
    input_dim: int = 80
    dim: int = 256
    num_blocks: int = 6
    subsampling: SubsamplingKind = "conv1d"
    subsampling_channels: int = 128
    memory_channels: int = 32  # numbers a frame that are remembered, in both directions together
    order: int = 16  # coefficients each is remembered in
    theta: float = 50.0  # how long
    trainable_theta: bool = False
    bidirectional: bool = True
    lmu_form: Form = "auto"
    num_heads: int = 0  # 0: no attention
    left_context: int | None = None  # frames of the past that attention sees, when causal; null: all
    conv_kernel: int = 15  # 0: no convolution
    ffn_dim: int = 1024
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    causal: bool = False  # sees no future: can stream

    def __post_init__(self) -> None:
        if self.causal and self.bidirectional:
            raise ValueError("bidirectional=true looks into the future; with causal=true set it to false")
        if self.bidirectional and self.memory_channels % 2:
            raise ValueError(f"memory_channels={self.memory_channels} must be even with bidirectional=true")
        if self.num_heads and self.dim % (2 * self.num_heads):
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim} into even heads")
        if self.left_context is not None and not (self.causal and self.num_heads):
            raise ValueError(f"left_context={self.left_context} must be null unless causal=true and num_heads > 0")
        if self.conv_kernel and not self.causal and self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel={self.conv_kernel} must be odd unless causal")

    def output_lengths(self, num_frames: Any) -> Any:
        """Return the output frames of `num_frames` feature frames: an int, or an array or tensor of them."""
        return -(-num_frames // SUBSAMPLING)


class BlockState(NamedTuple):
    """The state of a block between two chunks of a stream."""

    attention: AttentionState | None = None
    memory: Tensor | None = None  # (B, order, memory_channels)
    conv: Tensor | None = None  # (B, conv_kernel - 1, dim)


class StreamState(NamedTuple):
    """The state of a causal encoder between two chunks of a stream."""

    subsampling: list[Tensor]
    blocks: list[BlockState]


class LMUEncoder(nn.Module):
    """The encoder from log-mel features to hidden frames, four times fewer."""

    def __init__(self, config: LMUEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.dim
        self.subsampling = ConvSubsampling(
            kind=config.subsampling,
            input_dim=config.input_dim,
            channels=config.subsampling_channels,
            output_dim=config.dim,
            causal=config.causal,
        )
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(LMUBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, T, input_dim) and num_frames (B,) to hidden (B, ceil(T / 4), dim) and lengths (B,)."""
        return self.tapped(features, num_frames)[:2]

    def tapped(
        self, features: Tensor, num_frames: Tensor, *, after: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what forward gives, and the hidden frames (B, ceil(T / 4), dim) after some blocks, from 1."""
        x, lengths = self.subsampling(features, num_frames)
        is_valid = valid_frames(lengths, x.size(1))
        x = self.dropout(x)
        taps = []
        for number, block in enumerate(self.layers, start=1):
            x = block(x, is_valid)
            if number in after:
                taps.append(x)
        return self.norm(x), lengths, taps

    def stream(self, features: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Map the next frames (B, t, input_dim) after `state` (None: the beginning) to hidden frames and state.

        The hidden frames are those that the features complete: perhaps none, over all chunks the same as of forward.
        """
        if not self.config.causal:
            raise ValueError("causal=false: the encoder looks into the future; it cannot stream")
        x, kept = self.subsampling.stream(features, None if state is None else state.subsampling)
        before = [BlockState()] * len(self.layers) if state is None else state.blocks
        after = []
        for block, block_state in zip(cast("list[LMUBlock]", self.layers), before, strict=True):
            if x.size(1):
                x, block_state = block.stream(x, block_state)
            after.append(block_state)
        return self.norm(x), StreamState(kept, after)

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return list(self.layers)

    def output_lengths(self, num_frames: Any) -> Any:
        return self.config.output_lengths(num_frames)


class LMUBlock(nn.Module):
    """x + f(norm(x)) for each part f in turn."""

    def __init__(self, config: LMUEncoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.attention: SelfAttention | None = None
        self.conv: GatedConv | None = None
        if config.num_heads:
            self.attention_norm = nn.LayerNorm(dim)
            self.attention = SelfAttention(
                dim,
                num_heads=config.num_heads,
                dropout=0.0,  # of the weights: the output is dropped below, and SDPA is faster without
                causal=config.causal,
                left_context=config.left_context,
                rotary=True,
            )
        self.lmu_norm = nn.LayerNorm(dim)
        self.lmu = ParallelLMU(
            input_dim=dim,
            hidden_dim=dim,
            order=config.order,
            theta=config.theta,
            memory_channels=config.memory_channels,
            bidirectional=config.bidirectional,
            trainable_theta=config.trainable_theta,
            memory_activation="none",
            hidden_activation="gelu",
            form=config.lmu_form,
        )
        self.lmu_output = nn.Linear(dim, dim)
        if config.conv_kernel:
            self.conv_norm = nn.LayerNorm(dim)
            self.conv = GatedConv(dim, kernel=config.conv_kernel, causal=config.causal)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_input = nn.Linear(dim, config.ffn_dim)
        self.ffn_output = nn.Linear(config.ffn_dim, dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, is_valid: Tensor) -> Tensor:
        """Map x (B, T, dim) and is_valid (B, T) bool to (B, T, dim)."""
        if self.attention is not None:
            x = x + self.dropout(self.attention(self.attention_norm(x), is_valid))
        x = x + self.dropout(self.lmu_output(self.lmu(self.lmu_norm(x), is_valid)))
        if self.conv is not None:
            x = x + self.dropout(self.conv(self.conv_norm(x), is_valid))
        return x + self._feed_forward(x)

    def stream(self, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """Map the next T >= 1 frames of a causal block to (B, T, dim) and the state."""
        attention, conv = state.attention, state.conv
        if self.attention is not None:
            y, attention = self.attention.stream(self.attention_norm(x), attention)
            x = x + y
        y, memory = self.lmu.stream(self.lmu_norm(x), state.memory)
        x = x + self.lmu_output(y)
        if self.conv is not None:
            y, conv = self.conv.stream(self.conv_norm(x), conv)
            x = x + y
        return x + self._feed_forward(x), BlockState(attention, memory, conv)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.ffn_input(self.ffn_norm(x))))
        return self.dropout(self.ffn_output(hidden))


class GatedConv(nn.Module):
    """A Conformer's convolution (Gulati et al. 2020) without batch statistics: gate, depthwise, norm, pointwise."""

    def __init__(self, dim: int, *, kernel: int, causal: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 2 * dim)
        self.filter = DepthwiseConv(dim, kernel=kernel, causal=causal)
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, is_valid: Tensor) -> Tensor:
        """Map x (B, T, dim) and is_valid (B, T) bool to (B, T, dim)."""
        return self._finish(self.filter(F.glu(self.gate(x)), is_valid))

    def stream(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the next T frames to (B, T, dim) and the frames that the filter keeps."""
        y, state = self.filter.stream(F.glu(self.gate(x)), state)
        return self._finish(y), state

    def _finish(self, y: Tensor) -> Tensor:
        return self.output(F.silu(self.norm(y)))
