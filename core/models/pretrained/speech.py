"""Speech encoders of Hugging Face: wav2vec 2.0, HuBERT, WavLM and Whisper's encoder, exact under padding.

Each is a module of audio (B, S), num_samples (B,) -> frames (B, T, D), their lengths (B,). Layer drop here calls every
layer and gives a dropped one gradients of 0, so that DDP and DeepSpeed find the gradients they wait for.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from core.config.schema import section
from core.models.hubert.encoder import skip_layer
from core.models.hubert.frontend import MaskedGroupNorm, conv_lengths
from core.models.pretrained.directory import Attention, cut_layers, find_layers, load_pretrained, read_model_type
from core.models.pretrained.state_fusion import StateFusion
from core.models.subsampling import valid_frames

Share = Annotated[float, Field(ge=0, lt=1)]

WAVE_TYPES = ("hubert", "wav2vec2", "wavlm")
_WHISPER_SECONDS = 30.0
_WHISPER_FRAME_SAMPLES = 320  # a hop of 160, then a convolution of stride 2


@section
class PretrainedSpeechConfig:
    """The directory of a wav2vec 2.0, HuBERT, WavLM or Whisper model.

    `hidden_state`: which of the hidden states is pooled, as Hugging Face numbers them; -1 is the last. Layers after it
    are left away. `fused_states`: so many of the last ones are mixed instead (see state_fusion.py), into `fusion_times`
    mixtures of each frame; 0: none. `layer_drop`, `mask_time_prob` and `mask_feature_prob` (SpecAugment) take the place
    of what the directory's config.json says. `window_s`: of Whisper only (its own is 30), the audio that each clip is
    padded to.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: str
    attention: Attention = "auto"
    hidden_state: int = -1
    fused_states: Annotated[int, Field(ge=0)] = 0
    fusion_times: Annotated[int, Field(ge=1)] = 1
    layer_drop: Share = 0.0
    mask_time_prob: Share = 0.0
    mask_feature_prob: Share = 0.0
    window_s: Annotated[float, Field(gt=0, le=_WHISPER_SECONDS)] | None = None

    def __post_init__(self) -> None:
        if self.fused_states and self.hidden_state != -1:
            raise ValueError(f"hidden_state={self.hidden_state} must be -1: fused_states takes the last ones")
        if self.fusion_times != 1 and not self.fused_states:
            raise ValueError(f"fusion_times={self.fusion_times} must be 1 without fused_states")


def load_speech_encoder(config: PretrainedSpeechConfig) -> "WaveEncoder | WhisperEncoder":
    """Load an encoder; ValueError for a directory without such a model and for options that it does not have."""
    path = Path(config.path).expanduser()
    found = read_model_type(path, accepted=[*WAVE_TYPES, "whisper"])
    if found == "whisper":
        if config.mask_time_prob or config.mask_feature_prob or config.fused_states:
            raise ValueError(f"mask_time_prob, mask_feature_prob and fused_states must be 0: {path} is a Whisper model")
        changes: dict[str, Any] = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
        whisper: Any = load_pretrained(path, attention=config.attention, changes=changes)
        return WhisperEncoder(whisper.get_encoder(), config)
    if config.window_s is not None:
        raise ValueError(f"window_s={config.window_s} must be left out: {path} is a model of type {found}, not whisper")
    masks = {"mask_time_prob": config.mask_time_prob, "mask_feature_prob": config.mask_feature_prob}
    changes = {"layerdrop": 0.0, "apply_spec_augment": any(masks.values()), **masks}
    if found == "wavlm":
        changes["mask_feature_min_masks"] = 0  # asked for in training, but its configuration has none
    model = load_pretrained(path, attention=config.attention, changes=changes, may_miss=["masked_spec_embed"])
    return WaveEncoder(model, config)


class WaveEncoder(nn.Module):
    """wav2vec 2.0 and its kin. Where the first convolution has a GroupNorm, it becomes one over the valid frames."""

    def __init__(self, model: nn.Module, config: PretrainedSpeechConfig) -> None:
        super().__init__()
        self.model = model
        found: Any = model.config
        if getattr(found, "add_adapter", False):
            raise ValueError(f"{config.path}: add_adapter=true in its config.json is not supported")
        self.output_dim: int = found.hidden_size
        self.conv_layers = list(zip(found.conv_dim, found.conv_kernel, found.conv_stride, strict=True))
        num_layers = len(cut_layers(model, hidden_state=config.hidden_state))
        add_layer_drop(find_layers(model), config.layer_drop)
        self.num_fused = config.fused_states
        if self.num_fused > num_layers + 1:
            raise ValueError(f"fused_states={self.num_fused} must be at most {num_layers + 1}: {config.path}")
        self.fusion = StateFusion(self.num_fused, config.fusion_times) if self.num_fused else None
        if found.feat_extract_norm == "group":
            first: Any = model.get_submodule("feature_extractor.conv_layers.0")
            first.layer_norm = _GroupNormOfLengths.like(first.layer_norm)
        if hasattr(model, "masked_spec_embed") and not config.mask_time_prob:
            model.masked_spec_embed.requires_grad_(False)  # nothing gives it a gradient
        self.train()  # Hugging Face hands models over in evaluation mode

    def train(self, mode: bool = True) -> "WaveEncoder":
        """Set the mode, except of the convolutions, whose training mode asks for the gradient of the audio.

        They do nothing else differently; and frozen ones then keep nothing for backward.
        """
        super().train(mode)
        self.model.get_submodule("feature_extractor").eval()
        return self

    def forward(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio (B, S) and num_samples (B,) to hidden (B, T, D) and lengths (B,), at least 1."""
        window = _window(self.conv_layers)
        num_samples = num_samples.clamp(min=window)  # one frame at least
        audio = F.pad(audio, (0, max(0, window - audio.size(1))))
        is_valid = valid_frames(num_samples, audio.size(1))  # (B, S)
        lengths = conv_lengths(num_samples, self.conv_layers)
        for module in self.model.modules():
            if isinstance(module, _GroupNormOfLengths):
                module.lengths = lengths[0]
        output = self.model(
            audio.masked_fill(~is_valid, 0.0),
            attention_mask=is_valid.long(),
            output_hidden_states=self.fusion is not None,
        )
        if self.fusion is None:
            return output.last_hidden_state, lengths[-1]
        inner = output.hidden_states[-self.num_fused : -1]
        return self.fusion(torch.stack([*inner, output.last_hidden_state], dim=1), lengths[-1])

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return list(find_layers(self.model))


class WhisperEncoder(nn.Module):
    """Whisper's encoder over clips padded with silence to one window, as it was trained: it knows no mask.

    It expects audio as recorded (full scale 1), not normalized to unit variance.
    """

    mel_filters: Tensor  # (bins, F)

    def __init__(self, model: Any, config: PretrainedSpeechConfig) -> None:
        from transformers import WhisperFeatureExtractor

        super().__init__()
        self.model = model
        found = model.config
        self.output_dim: int = found.d_model
        window_s = config.window_s or _WHISPER_SECONDS
        self.num_frames: int = min(found.max_source_positions, math.ceil(window_s * 16000 / _WHISPER_FRAME_SAMPLES))
        positions = model.embed_positions.weight[: self.num_frames].detach().clone()
        model.embed_positions = nn.Embedding.from_pretrained(positions, freeze=True)
        found.max_source_positions = self.num_frames
        cut_layers(model, hidden_state=config.hidden_state)
        add_layer_drop(find_layers(model), config.layer_drop)
        filters = WhisperFeatureExtractor(feature_size=found.num_mel_bins).mel_filters
        self.register_buffer("mel_filters", torch.from_numpy(filters).float(), persistent=False)
        self.train()

    def forward(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio (B, S), num_samples (B,) to hidden (B, T, D) of the whole window, lengths (B,), at least 1."""
        room = self.num_frames * _WHISPER_FRAME_SAMPLES
        if audio.size(1) > room:
            raise ValueError(f"clips of {audio.size(1) / 16000:.2f} s do not fit window_s={room / 16000:.2f}; raise it")
        audio = audio.masked_fill(~valid_frames(num_samples, audio.size(1)), 0.0)
        features = self._log_mel(F.pad(audio, (0, room - audio.size(1))))
        hidden = self.model(features).last_hidden_state
        return hidden, -(-num_samples.clamp(min=1) // _WHISPER_FRAME_SAMPLES)

    def _log_mel(self, audio: Tensor) -> Tensor:
        """Map (B, S) to (B, F, S / 160), as transformers' WhisperFeatureExtractor does."""
        with torch.autocast(audio.device.type, enabled=False):
            window = torch.hann_window(400, device=audio.device)
            spectrum = torch.stft(audio.float(), 400, 160, window=window, return_complex=True)[..., :-1]
            log_mel = (self.mel_filters.float().t() @ spectrum.abs().square()).clamp(min=1e-10).log10()
            return (torch.maximum(log_mel, log_mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return list(find_layers(self.model))


class _GroupNormOfLengths(MaskedGroupNorm):
    """A replacement of a GroupNorm whose caller knows no lengths: they are left here before each forward."""

    lengths: Tensor

    @classmethod
    def like(cls, norm: nn.GroupNorm) -> "_GroupNormOfLengths":
        made = cls(norm.num_channels, eps=norm.eps)
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map x (B, C, T) to the same shape."""
        return super().forward(x, self.lengths)


def add_layer_drop(layers: Iterable[nn.Module], probability: float) -> None:
    """Let training skip each layer with that probability (Fan et al. 2020), in place."""
    if probability:
        for number, layer in enumerate(layers):
            layer.forward = _dropping(layer, probability, is_first=number == 0)


def _dropping(layer: nn.Module, probability: float, *, is_first: bool) -> Callable[..., Any]:
    forward = layer.forward

    def call(hidden: Tensor, *arguments: Any, **keywords: Any) -> Any:
        shares_positions = "position_bias" in keywords  # WavLM: made by the first layer for all, so that one stays
        is_kept = not layer.training or (shares_positions and is_first) or torch.rand(()) >= probability
        if is_kept:
            return forward(hidden, *arguments, **keywords)
        passed = skip_layer(hidden, layer.parameters())
        return (passed, keywords["position_bias"]) if shares_positions else passed

    return call


def _window(conv_layers: list[tuple[int, int, int]]) -> int:
    """Return the samples that the convolutions need for one frame."""
    window, hop = 1, 1
    for _, kernel, stride in conv_layers:
        window, hop = window + (kernel - 1) * hop, hop * stride
    return window
