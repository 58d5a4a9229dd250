r"""Speech and text in one space (CSA): an utterance and its transcript meet, all others keep away.

    model = CsaModel(config, text_dim=frozen.output_dim)                        # a frozen text encoder outside
    output = model(audio, num_samples, text_features=frozen.features(token_ids, num_tokens))
    model = CsaModel(config, vocab_size=len(vocabulary))                        # a text encoder trained along
    output = model(audio, num_samples, token_ids=token_ids, num_tokens=num_tokens)

Names of parameters, for `optim.freeze.patterns`: speech_encoder.model.*, speech_pooling.*, speech_projection.*,
text_encoder.*, text_projection.*, log_scale, bias. What CSRef 2.0 calls freeze_layers is, with a wav2vec 2.0, HuBERT or
WavLM and with our own HuBERT alike, a list of these; a frozen front end keeps nothing for backward:

    null     speech_encoder\.model\.feature_extractor\.
    6        speech_encoder\.model\.(feature_extractor|feature_projection|encoder\.pos_conv_embed|encoder\.layer_norm)\.
             speech_encoder\.model\.encoder\.layers\.[0-5]\.
    true     speech_encoder\.
    freeze_model: false      []
"""

import math
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from core.config.schema import section
from core.losses.contrastive import PairEmbeddings
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import Hubert
from core.models.lmu.speech import LmuSpeech, LmuSpeechConfig
from core.models.pooling import Count, PoolingConfig, build_pooling
from core.models.pretrained.speech import PretrainedSpeechConfig, load_speech_encoder
from core.models.pretrained.text import PretrainedText, PretrainedTextConfig
from core.models.text_encoder import OwnTextConfig, TextEncoder


@section
class HubertSpeechConfig:
    """Our own HuBERT as the speech encoder; it begins at random."""

    kind: Literal["hubert"] = "hubert"
    hubert: HubertConfig


@section
class CsaConfig:
    """Sizes of the model; the defaults beside the encoders are those of CSRef 2.0, in the space of the text encoder.

    `projection_dim`: both sides are projected to this width; null: the pooled speech meets the text as it is.
    `scale_init`: what the cosines are multiplied by at the beginning. `bias_init`: what is added to them, for the loss
    siglip; null: nothing. (Zhai et al. 2023 begin with 10 and -10.)
    """

    speech: PretrainedSpeechConfig | HubertSpeechConfig | LmuSpeechConfig
    text: PretrainedTextConfig | OwnTextConfig
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    projection_dim: Count | None = None
    scale_init: Annotated[float, Field(ge=1, le=100)] = 1 / 0.07
    bias_init: float | None = None

    @property
    def has_frozen_text(self) -> bool:
        """Whether the text encoder stands outside of the trained model, as a `FrozenText`."""
        return isinstance(self.text, PretrainedTextConfig) and self.text.frozen


class CsaModel(nn.Module):
    """The model that is trained. A frozen text encoder is no part of it: its features come in."""

    def __init__(self, config: CsaConfig, *, text_dim: int | None = None, vocab_size: int | None = None) -> None:
        """Take the width of a frozen text encoder's features, or the vocabulary of a text encoder of our own."""
        super().__init__()
        self.config = config
        self.speech_encoder = _speech_encoder(config.speech)
        self.text_encoder: PretrainedText | TextEncoder | None = None
        if isinstance(config.text, OwnTextConfig):
            assert vocab_size is not None, "an own text encoder needs the size of its vocabulary"
            self.text_encoder = TextEncoder(config.text, vocab_size=vocab_size)
        elif not config.text.frozen:
            self.text_encoder = PretrainedText(config.text)
        width = text_dim if self.text_encoder is None else self.text_encoder.output_dim
        assert width is not None, "a frozen text encoder gives features of some width"
        speech_dim: int = self.speech_encoder.output_dim
        if config.projection_dim is None:
            if config.pooling.kind != "att_flat" and speech_dim != width:
                raise ValueError(
                    f"projection_dim=null with pooling.kind={config.pooling.kind} needs encoders of one width, but "
                    f"speech has {speech_dim} and text {width}; set projection_dim, or take att_flat"
                )
            self.speech_pooling = build_pooling(config.pooling, speech_dim, output_dim=width)
            self.speech_projection = self.text_projection = None
        else:
            self.speech_pooling = build_pooling(config.pooling, speech_dim, output_dim=speech_dim)
            self.speech_projection = nn.Linear(speech_dim, config.projection_dim)
            self.text_projection = nn.Linear(width, config.projection_dim)
        self.output_dim = config.projection_dim or width
        self.log_scale = nn.Parameter(torch.tensor([math.log(config.scale_init)]))  # (1,): DeepSpeed takes no scalars
        self.bias = None if config.bias_init is None else nn.Parameter(torch.tensor([config.bias_init]))

    def forward(
        self,
        audio: Tensor,
        num_samples: Tensor,
        *,
        token_ids: Tensor | None = None,
        num_tokens: Tensor | None = None,
        text_features: Tensor | None = None,
    ) -> PairEmbeddings:
        """Take audio (B, S), num_samples (B,), and token_ids (B, L), num_tokens (B,) or text_features (B, text_dim).

        All that has gradients happens in this one call. The embeddings are fp32, also under autocast.
        """
        hidden, lengths = self.speech_encoder(audio, num_samples)
        speech = self.speech_pooling(hidden, lengths)
        speech = speech if self.speech_projection is None else self.speech_projection(speech)
        if self.text_encoder is not None:
            assert text_features is None and token_ids is not None and num_tokens is not None
            text = self.text_encoder(token_ids, num_tokens)
        else:
            assert text_features is not None and token_ids is None, "the text encoder is frozen: it gives text_features"
            text = text_features
        text = text if self.text_projection is None else self.text_projection(text)
        # Copies of the parameters: engines that shard them take the originals back after this call.
        log_scale = _exact(self.log_scale).clone()
        bias = None if self.bias is None else _exact(self.bias).clone()
        return PairEmbeddings(_unit(speech), _unit(text), log_scale, bias)

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return self.speech_encoder.blocks() + (self.text_encoder.blocks() if self.text_encoder is not None else [])


class HubertSpeech(nn.Module):
    """Our HuBERT, which skips layers in training as its configuration says."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.model = Hubert(config)
        self.model.mask_embedding.requires_grad_(False)  # nothing is masked
        self.output_dim = config.dim

    def forward(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio (B, S) and num_samples (B,) to hidden (B, T, D) and lengths (B,)."""
        config = self.model.config
        draws = torch.rand(config.num_layers) if self.training and config.layer_drop else torch.ones(0)
        dropped = [number for number, draw in enumerate(draws.tolist()) if draw < config.layer_drop]
        frames = self.model(audio, num_samples, dropped_layers=dropped)
        return frames.hidden, frames.lengths

    def blocks(self) -> list[nn.Module]:
        return self.model.blocks()


def _speech_encoder(config: PretrainedSpeechConfig | HubertSpeechConfig | LmuSpeechConfig) -> Any:
    if isinstance(config, HubertSpeechConfig):
        return HubertSpeech(config.hubert)
    return LmuSpeech(config) if isinstance(config, LmuSpeechConfig) else load_speech_encoder(config)


def _unit(x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(_exact(x), dim=-1)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
