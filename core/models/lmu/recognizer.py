"""Speech recognition by an LMU encoder: the model of recipe lmu_gigaspeech, which others may use once it is trained."""

from dataclasses import field

from core.config.schema import section
from core.models.ctc import CTCHeadConfig, CTCModel
from core.models.lmu.attention_encoder import AttentionLMUEncoder, AttentionLMUEncoderConfig
from core.models.lmu.encoder import LMUEncoder, LMUEncoderConfig


@section
class LmuCtcConfig:
    """The encoder and the CTC layer on top."""

    encoder: LMUEncoderConfig | AttentionLMUEncoderConfig
    head: CTCHeadConfig = field(default_factory=CTCHeadConfig)

    def __post_init__(self) -> None:
        last = self.encoder.num_blocks - 1 if isinstance(self.encoder, LMUEncoderConfig) else 0
        wrong = [block for block in self.head.intermediate_blocks if not 1 <= block <= last]
        if wrong:
            accepted = f"blocks from 1 to {last}" if last else "[] with model.encoder.kind=attention_lmu"
            raise ValueError(f"head.intermediate_blocks={self.head.intermediate_blocks} must be {accepted}")


def build_lmu_ctc(config: LmuCtcConfig, *, vocab_size: int) -> CTCModel:
    encoder = config.encoder
    if isinstance(encoder, LMUEncoderConfig):
        return CTCModel(LMUEncoder(encoder), vocab_size=vocab_size, config=config.head)
    return CTCModel(AttentionLMUEncoder(encoder), vocab_size=vocab_size, config=config.head)
