"""The encoder of our LMU recognizer as the speech side of a larger model: from audio to hidden frames."""

from dataclasses import field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from core.config.schema import section
from core.models.lmu.encoder import LMUEncoder, LMUEncoderConfig
from core.speech.features import FeatureConfig, FeatureStats, LogMel, standardize


@section
class LmuSpeechConfig:
    """The speech encoder; it begins with the run of lmu_gigaspeech that has `encoder` and `features`, or at random."""

    kind: Literal["lmu"] = "lmu"
    encoder: LMUEncoderConfig
    features: FeatureConfig = field(default_factory=FeatureConfig)


class LmuSpeech(nn.Module):
    """An LMU encoder of audio. For features.normalize=corpus the statistics are buffers that come with the weights."""

    mean: Tensor  # (F,)
    std: Tensor  # (F,)

    def __init__(self, config: LmuSpeechConfig) -> None:
        super().__init__()
        self.encoder = LMUEncoder(config.encoder)
        self.output_dim = self.encoder.output_dim
        self._has_stats = config.features.normalize == "corpus"
        normalize = "none" if self._has_stats else config.features.normalize
        self._log_mel = LogMel(replace(config.features, normalize=normalize))
        if self._has_stats:
            self.register_buffer("mean", torch.zeros(config.features.num_mels))
            self.register_buffer("std", torch.ones(config.features.num_mels))

    def take_stats(self, stats: FeatureStats) -> None:
        assert self._has_stats, "features.normalize is not corpus"
        device = self.get_buffer("mean").device
        self.mean = torch.tensor(stats.mean, device=device)
        self.std = torch.tensor(stats.std, device=device)

    def forward(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio (B, S) as recorded and num_samples (B,) to hidden (B, T, D) and lengths (B,)."""
        features, num_frames = self._log_mel(audio, num_samples)
        if self._has_stats:
            is_valid = torch.arange(features.size(1), device=features.device) < num_frames[:, None]
            features = standardize(features, mean=self.mean, std=self.std).where(is_valid[..., None], 0.0)
        hidden, lengths = self.encoder(features, num_frames)
        return hidden, lengths

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return self.encoder.blocks()
