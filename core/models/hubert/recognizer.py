"""HuBERT with a layer that spells: the model to fine-tune with CTC.

model = HubertCTC(config, vocab_size=29)
model.hubert.load_state_dict(pretrained.hubert.state_dict())
logits, lengths, _ = model(audio, num_samples)                        # to decode
logits, lengths, _ = model(audio, num_samples, is_masked=is_masked, is_masked_channel=is_masked_channel)   # to train
"""

from collections.abc import Collection

from torch import Tensor, nn

from core.models.ctc import CTCOutput
from core.models.hubert.config import HubertEncoderConfig
from core.models.hubert.model import Hubert


class HubertCTC(nn.Module):
    """The encoder, and a linear layer from its frames to blank and characters."""

    def __init__(self, config: HubertEncoderConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.hubert = Hubert(config)
        self.head = nn.Linear(config.dim, vocab_size)

    def forward(
        self,
        audio: Tensor,
        num_samples: Tensor,
        *,
        is_masked: Tensor | None = None,
        is_masked_channel: Tensor | None = None,
        dropped_layers: Collection[int] = (),
    ) -> CTCOutput:
        """Map audio (B, S) and num_samples (B,) to logits (B, T, V) and lengths (B,).

        `is_masked` (B, T), `is_masked_channel` (B, D), `dropped_layers`: see Hubert.
        """
        frames = self.hubert(
            audio,
            num_samples,
            is_masked=is_masked,
            is_masked_channel=is_masked_channel,
            dropped_layers=dropped_layers,
        )
        return CTCOutput(self.head(frames.hidden), frames.lengths, [])

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return self.hubert.blocks()
