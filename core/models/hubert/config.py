"""The architecture of HuBERT as a section, and the published sizes."""

import math
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from core.config.schema import section
from core.models.hubert.frontend import ConvNorm, conv_lengths

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Size = Literal["base", "large", "xlarge"]

# What a model that begins with a pretrained encoder may choose anew, beside its dropout.
OF_PRETRAINING = ("feature_grad_scale", "final_dim", "num_classes")
_CONV_LAYERS = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]


@section
class HubertEncoderConfig:
    """Sizes of the encoder; the defaults are HuBERT base.

    `conv_layers`: [channels, kernel, stride] each. `pre_norm`: norms before attention and feed-forward, not after.
    `feature_grad_scale`: what the gradient that reaches the convolutions is multiplied by.
    """

    conv_layers: list[list[Count]] = field(default_factory=lambda: [list(layer) for layer in _CONV_LAYERS])
    conv_norm: ConvNorm = "group"
    conv_bias: bool = False
    dim: Count = 768
    num_layers: Count = 12
    num_heads: Count = 12
    ffn_dim: Count = 3072
    pre_norm: bool = False
    position_kernel: Count = 128
    position_groups: Count = 16
    projection_dropout: Share = 0.1
    attention_dropout: Share = 0.1
    activation_dropout: Share = 0.0
    dropout: Share = 0.1
    layer_drop: Share = 0.05
    feature_grad_scale: Annotated[float, Field(gt=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        if not self.conv_layers or any(len(layer) != 3 for layer in self.conv_layers):
            raise ValueError(f"conv_layers={self.conv_layers} must be a list of [channels, kernel, stride]")
        for name in ("num_heads", "position_groups"):
            if self.dim % getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)} must divide dim={self.dim}")

    @property
    def hop_samples(self) -> int:
        """The samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def window_samples(self) -> int:
        """The samples that a frame sees before the transformer."""
        window, hop = 1, 1
        for _, kernel, stride in self.conv_layers:
            window, hop = window + (kernel - 1) * hop, hop * stride
        return window

    def output_lengths(self, num_samples: Any) -> Any:
        """Return the frames of so many samples: an int, or an array or tensor of them."""
        return conv_lengths(num_samples, self.conv_layers)[-1]


@section
class HubertConfig(HubertEncoderConfig):
    """The encoder and the head that pretrains it. `hubert_config("large")` gives the published larger models."""

    final_dim: Count = 256
    num_classes: Annotated[int, Field(ge=2, le=32767)] = 100


def hubert_config(size: Size, *, num_classes: int) -> HubertConfig:
    """Return a published architecture: base (95M), large (317M), xlarge (964M).

    The convolutions have no biases, as trained by fairseq; Hugging Face's larger models have them (`conv_bias`).
    """
    if size == "base":
        return HubertConfig(num_classes=num_classes)
    dim, num_layers, final_dim = (1024, 24, 768) if size == "large" else (1280, 48, 1024)
    return HubertConfig(
        conv_norm="layer", dim=dim, num_layers=num_layers, num_heads=16, ffn_dim=4 * dim, pre_norm=True,
        projection_dropout=0.0, attention_dropout=0.0, dropout=0.0, layer_drop=0.0, feature_grad_scale=1.0,
        final_dim=final_dim, num_classes=num_classes,
    )  # fmt: skip
