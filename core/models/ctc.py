"""A CTC model: any encoder, and a linear layer from its hidden frames to blank and characters."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor, nn

from core.config.schema import section
from core.text.vocabulary import BLANK_ID


@section
class CTCHeadConfig:
    """The start of the output layer. Small weights give nearly equal probabilities to all symbols; the biases then say
    how much more often blank is expected than any one character (the seed system used gain 0.1, biases 0.1 and 0.2).
    """

    init_gain: float = 0.1  # of Xavier's uniform initialization
    blank_bias: float = 0.0
    symbol_bias: float = 0.0
    # Blocks, from 1, after which the text is read off too, in training only: a regularizer (Lee and Watanabe 2021,
    # arXiv:2102.03216) whose loss weighs `intermediate_weight` of the whole.
    intermediate_blocks: list[int] = field(default_factory=list)
    intermediate_weight: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.intermediate_weight < 1:
            raise ValueError(f"intermediate_weight={self.intermediate_weight} must be at least 0 and below 1")
        if self.init_gain <= 0:
            raise ValueError(f"init_gain={self.init_gain} must be positive")


class Encoder(Protocol):
    """The interface that CTCModel demands of an encoder, besides being an nn.Module."""

    output_dim: int

    def __call__(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, T, F) and num_frames (B,) to hidden (B, T', output_dim) and lengths (B,)."""
        ...

    def stream(self, features: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...

    def output_lengths(self, num_frames: Any) -> Any: ...

    def blocks(self) -> list[nn.Module]: ...


class TappedEncoder(Encoder, Protocol):
    """An encoder that also gives the output of intermediate blocks."""

    def tapped(
        self, features: Tensor, num_frames: Tensor, *, after: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what a call gives, and the hidden frames (B, T', output_dim) after some blocks, from 1."""
        ...


class CTCOutput(NamedTuple):
    """The input of the CTC loss."""

    logits: Tensor  # (B, T', V)
    lengths: Tensor  # (B,)
    intermediate: list[Tensor]  # logits (B, T', V) after the intermediate blocks; empty in evaluation


class CTCModel(nn.Module):
    def __init__(self, encoder: Encoder, *, vocab_size: int, config: CTCHeadConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.output_dim, vocab_size)
        nn.init.xavier_uniform_(self.projection.weight, gain=config.init_gain)
        nn.init.constant_(self.projection.bias, config.symbol_bias)
        nn.init.constant_(self.projection.bias[BLANK_ID : BLANK_ID + 1], config.blank_bias)
        self.intermediate_blocks = config.intermediate_blocks
        self.intermediate = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(encoder.output_dim), nn.Linear(encoder.output_dim, vocab_size))
            for _ in config.intermediate_blocks
        )

    def forward(self, features: Tensor, num_frames: Tensor) -> CTCOutput:
        """Map features (B, T, F) and num_frames (B,) to the input of the loss."""
        if not (self.training and self.intermediate_blocks):
            hidden, lengths = self.encoder(features, num_frames)
            return CTCOutput(self.projection(hidden), lengths, [])
        hidden, lengths, taps = cast("TappedEncoder", self.encoder).tapped(
            features, num_frames, after=self.intermediate_blocks
        )
        intermediate = [head(tap) for head, tap in zip(self.intermediate, taps, strict=True)]
        return CTCOutput(self.projection(hidden), lengths, intermediate)

    def log_probs(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (B, T', V) in fp32 and lengths (B,), for decoding."""
        logits, lengths, _ = self(features, num_frames)
        return logits.float().log_softmax(dim=-1), lengths

    def stream(self, features: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return log-probabilities (B, t', V) that the next frames (B, t, F) complete, and the encoder's state."""
        hidden, state = self.encoder.stream(features, state)
        return self.projection(hidden).float().log_softmax(dim=-1), state

    def output_lengths(self, num_frames: Any) -> Any:
        return self.encoder.output_lengths(num_frames)

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return self.encoder.blocks()
