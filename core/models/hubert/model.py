"""HuBERT (Hsu et al. 2021, arXiv:2106.07447): a transformer that predicts the clusters of masked frames of speech.

    model = HubertPretraining(hubert_config("base", num_classes=100))       # 94,594,176 parameters
    output = model(audio, num_samples, masked_frames=masked_frames, dropped_layers=dropped_layers)
    hidden, lengths = model.hubert.hidden(audio, num_samples, layer=6)      # to cluster

Nothing that follows a clip in its row changes any of its numbers: norms, penalty and attention see valid frames only.
Parameter names are those of the Hugging Face model; hubert_names.py maps them to torchaudio's and fairseq's.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.ctc import CTCOutput
from core.models.hubert.config import HubertConfig, HubertEncoderConfig
from core.models.hubert.encoder import FeatureProjection, HubertEncoder
from core.models.hubert.frontend import ConvFrontEnd
from core.models.subsampling import valid_frames

_TEMPERATURE = 0.1


class HubertOutput(NamedTuple):
    """The input of the loss. `penalties`: each clip's mean square of the convolutions' features."""

    logits: Tensor  # (R, K, N) of the predicted frames of the first R rows, in fp32
    penalties: Tensor  # (B,), in fp32


class Frames(NamedTuple):
    """The result of `Hubert`; behind a clip's length `hidden` holds no meaning."""

    hidden: Tensor  # (B, T, D)
    lengths: Tensor  # (B,)
    penalties: Tensor  # (B,)


class Hubert(nn.Module):
    """The model from waveform to contextual frames; also the encoder to fine-tune."""

    def __init__(self, config: HubertEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.dim
        self.feature_extractor = ConvFrontEnd(config.conv_layers, norm=config.conv_norm, bias=config.conv_bias)
        self.feature_projection = FeatureProjection(config)
        self.mask_embedding = nn.Parameter(torch.rand(config.dim))
        self.encoder = HubertEncoder(config)

    def forward(
        self,
        audio: Tensor,
        num_samples: Tensor,
        *,
        is_masked: Tensor | None = None,
        is_masked_channel: Tensor | None = None,
        dropped_layers: Collection[int] = (),
        num_layers: int | None = None,
    ) -> Frames:
        """Map audio (B, S) and num_samples (B,) to frames.

        `is_masked` (B, T): True where a frame is replaced by the mask embedding; `is_masked_channel` (B, D): True where
        a channel is set to 0. Layers whose number (from 0) is in `dropped_layers` are passed over, and get gradients of
        0: all ranks must drop the same. `num_layers`: stop after so many, before the final norm.
        """
        features, lengths = self.feature_extractor(audio, num_samples)
        features = scale_gradient(features, self.config.feature_grad_scale)
        is_valid = valid_frames(lengths, features.size(1))  # (B, T)
        x = self.feature_projection(features).masked_fill(~is_valid[..., None], 0.0)
        if is_masked is not None:
            x = torch.where((is_masked & is_valid)[..., None], self.mask_embedding.to(x.dtype), x)
        if is_masked_channel is not None:
            x = x.masked_fill(is_masked_channel[:, None], 0.0)
        hidden = self.encoder(x, is_valid, dropped_layers=dropped_layers, num_layers=num_layers)
        return Frames(hidden, lengths, mean_square(features, is_valid))

    @torch.no_grad()
    def hidden(self, audio: Tensor, num_samples: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
        """Return the output of layer 1, 2, ... (B, T, D) in fp32, which is clustered, and its lengths (B,).

        Always without dropout. ValueError for a layer that is not there.
        """
        if not 1 <= layer <= self.config.num_layers:
            raise ValueError(f"layer={layer} must be between 1 and {self.config.num_layers}")
        was_training = self.training
        self.eval()
        try:
            frames = self(audio, num_samples, num_layers=layer)
        finally:
            self.train(was_training)
        return frames.hidden.to(torch.promote_types(frames.hidden.dtype, torch.float32)), frames.lengths

    def blocks(self) -> list[nn.Module]:
        return list(self.encoder.layers)

    def output_lengths(self, num_samples: Any) -> Any:
        return self.config.output_lengths(num_samples)


class HubertPretraining(nn.Module):
    """HuBERT with the head that tells which cluster a masked frame belongs to."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.hubert = Hubert(config)
        self.head = ClusterHead(config)

    def forward(
        self,
        audio: Tensor,
        num_samples: Tensor,
        *,
        masked_frames: Tensor,
        predicted_frames: Tensor | None = None,
        dropped_layers: Collection[int] = (),
    ) -> HubertOutput:
        """Take audio (B, S), num_samples (B,), and the numbers masked_frames (R, K) of frames to mask in R rows.

        `predicted_frames` (R, K'): those to predict, if not the masked ones. `dropped_layers`: see Hubert.
        """
        num_frames = max(1, self.config.output_lengths(audio.size(1)))
        is_masked = torch.zeros(len(audio), num_frames, dtype=torch.bool, device=audio.device)
        is_masked.scatter_(1, masked_frames, True)
        frames = self.hubert(audio, num_samples, is_masked=is_masked, dropped_layers=dropped_layers)
        wanted = masked_frames if predicted_frames is None else predicted_frames
        index = wanted[..., None].expand(-1, -1, frames.hidden.size(2))
        return HubertOutput(self.head(frames.hidden.gather(1, index)), frames.penalties)

    def blocks(self) -> list[nn.Module]:
        return self.hubert.blocks()


class ClusterHead(nn.Module):
    """The layer of logits: the cosine of a projected frame and each cluster's embedding, over 0.1.

    The softmax over them is the contrastive probability of the paper (its eq. 3), by one product of matrices.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.dim, config.final_dim)
        self.label_embeddings = nn.Parameter(torch.rand(config.num_classes, config.final_dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden (..., D) to logits (..., N) in fp32."""
        projected = self.projection(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            x = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)
            return x @ F.normalize(self.label_embeddings.to(x.dtype), dim=-1).t() / _TEMPERATURE


def mean_square(features: Tensor, is_valid: Tensor) -> Tensor:
    """Map (B, T, C), (B, T) to the mean (B,) of the squares of each clip's valid features, in fp32; 0 of no frames."""
    with torch.autocast(features.device.type, enabled=False):
        full = features.to(torch.promote_types(features.dtype, torch.float32))
        of_frame = torch.linalg.vecdot(full, full) / full.size(2)  # (B, T)
        return of_frame.masked_fill(~is_valid, 0.0).sum(1) / is_valid.sum(1).clamp(min=1)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return x; its gradient is multiplied by `scale`."""
    return x if scale == 1 else _ScaledGradient.apply(x, scale)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


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
        return self.hubert.blocks()
