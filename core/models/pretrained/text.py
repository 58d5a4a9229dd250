"""Text encoders of Hugging Face (BERT, MiniLM, RoBERTa and other encoders), trained along or frozen."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.config.schema import section
from core.models.pooling import Pooling
from core.models.pretrained.directory import Attention, cut_layers, find_layers, load_pretrained, read_model_type
from core.models.subsampling import valid_frames


@section
class PretrainedTextConfig:
    """The directory of a BERT or another encoder.

    `frozen`: it stands outside of the trained model, without dropout, and nothing of it is in checkpoints.
    `pooling`: the first token ([CLS]) or the mean of all. `hidden_state`: which of the hidden states, as Hugging Face
    numbers them; -1 is the last. Layers after it are left away.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: str
    frozen: bool = True
    pooling: Literal["cls", "mean"] = "cls"
    attention: Attention = "auto"
    hidden_state: int = -1


class PretrainedText(nn.Module):
    """A text encoder that is trained along. ValueError for a directory without one."""

    def __init__(self, config: PretrainedTextConfig) -> None:
        super().__init__()
        path = Path(config.path).expanduser()
        found = read_model_type(path, accepted=None)
        model: Any = load_pretrained(path, attention=config.attention, changes={})
        if getattr(model, "main_input_name", "") != "input_ids" or model.config.is_encoder_decoder:
            raise ValueError(f"{path} holds a model of type {found}; expected a text encoder as bert, roberta, mpnet")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # it is not asked, and engines wait for the gradients of all that is there
        cut_layers(model, hidden_state=config.hidden_state)
        self.model = model
        self.output_dim: int = model.config.hidden_size
        self.max_tokens = _num_positions(model)
        self.pooling = Pooling(config.pooling)
        self.train()  # Hugging Face hands models over in evaluation mode

    def forward(self, token_ids: Tensor, num_tokens: Tensor) -> Tensor:
        """Map token_ids (B, L), num_tokens (B,) to (B, D) in fp32. ValueError for more tokens than positions."""
        if token_ids.size(1) > self.max_tokens:
            raise ValueError(
                f"{token_ids.size(1)} tokens are more than the {self.max_tokens:.0f} positions of the text encoder; "
                "take shorter crops"
            )
        num_tokens = num_tokens.clamp(min=1)
        is_valid = valid_frames(num_tokens, token_ids.size(1))
        hidden = self.model(input_ids=token_ids, attention_mask=is_valid.long()).last_hidden_state
        return self.pooling(hidden, num_tokens)

    def blocks(self) -> list[nn.Module]:
        """Return the modules to checkpoint, compile and shard one by one."""
        return list(find_layers(self.model))


def _num_positions(model: Any) -> float:
    """Return the most tokens that a model has positions for; RoBERTa's begin behind the id of its padding."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return float(getattr(model.config, "max_position_embeddings", None) or math.inf)


class FrozenText:
    """A text encoder that gives targets: no sub-module of what is trained, never in training mode, no gradients."""

    def __init__(self, config: PretrainedTextConfig, *, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Load the encoder; its products of matrices are autocast to `dtype` (None: fp32)."""
        self.encoder = PretrainedText(config).to(device).eval().requires_grad_(False)
        self.output_dim = self.encoder.output_dim
        self._device, self._dtype = device, dtype

    @torch.no_grad()  # not inference_mode: backward of what is made of these features needs ordinary tensors
    def features(self, token_ids: Tensor, num_tokens: Tensor) -> Tensor:
        """Map token_ids (B, L) and num_tokens (B,) to (B, D) in fp32, as they come, of any length."""
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            return self.encoder(token_ids, num_tokens)
