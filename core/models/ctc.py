"""A CTC model: any encoder, and a linear layer from its hidden frames to blank and characters."""

from typing import Any, Protocol

from torch import Tensor, nn

from core.config import section
from core.text import BLANK_ID


@section
class CTCHeadConfig:
    """How the output layer starts. Small weights give nearly equal probabilities to all symbols; the biases then say
    how much more often blank is expected than any one character (the seed system used gain 0.1, biases 0.1 and 0.2).
    """

    init_gain: float = 0.1  # of Xavier's uniform initialization
    blank_bias: float = 0.0
    symbol_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.init_gain <= 0:
            raise ValueError(f"init_gain={self.init_gain} must be positive")


class Encoder(Protocol):
    """What CTCModel asks of an encoder, besides being an nn.Module."""

    output_dim: int

    def __call__(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """features (B, T, F), num_frames (B,) -> hidden (B, T', output_dim), lengths (B,)."""
        ...

    def stream(self, features: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...

    def output_lengths(self, num_frames: Any) -> Any: ...

    def blocks(self) -> list[nn.Module]: ...


class CTCModel(nn.Module):
    def __init__(self, encoder: Encoder, *, vocab_size: int, config: CTCHeadConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.output_dim, vocab_size)
        nn.init.xavier_uniform_(self.projection.weight, gain=config.init_gain)
        nn.init.constant_(self.projection.bias, config.symbol_bias)
        nn.init.constant_(self.projection.bias[BLANK_ID : BLANK_ID + 1], config.blank_bias)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """features (B, T, F), num_frames (B,) -> logits (B, T', V), lengths (B,): what `ctc_loss` takes."""
        hidden, lengths = self.encoder(features, num_frames)
        return self.projection(hidden), lengths

    def log_probs(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T', V) in fp32, lengths (B,): what decoding takes."""
        logits, lengths = self(features, num_frames)
        return logits.float().log_softmax(dim=-1), lengths

    def stream(self, features: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The log-probabilities (B, t', V) that the next frames (B, t, F) complete, and the encoder's state."""
        hidden, state = self.encoder.stream(features, state)
        return self.projection(hidden).float().log_softmax(dim=-1), state

    def output_lengths(self, num_frames: Any) -> Any:
        return self.encoder.output_lengths(num_frames)

    def blocks(self) -> list[nn.Module]:
        """The unit of activation checkpointing, compilation and sharding."""
        return self.encoder.blocks()
