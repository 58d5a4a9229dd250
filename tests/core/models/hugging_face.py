"""Directories of tiny random models as Hugging Face saves them."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
WAVES: dict[str, Any] = {
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
STABLE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
TEXTS: dict[str, Any] = {**SIZES, "vocab_size": 50, "max_position_embeddings": 40}


def build(kind: str, **changes: Any) -> Any:
    """A random model in evaluation mode: wav2vec2, wav2vec2-stable, hubert, wavlm, whisper, bert, roberta."""
    import transformers

    name, sizes = {
        "wav2vec2": ("Wav2Vec2", {**SIZES, **WAVES}),
        "wav2vec2-stable": ("Wav2Vec2", {**SIZES, **WAVES, **STABLE}),
        "hubert": ("Hubert", {**SIZES, **WAVES}),
        "wavlm": ("WavLM", {**SIZES, **WAVES}),
        "whisper": ("Whisper", WHISPER),
        "bert": ("Bert", TEXTS),
        "roberta": ("Roberta", {**TEXTS, "pad_token_id": 1}),
    }[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    return getattr(transformers, f"{name}Model")(config).eval()


def save(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


@cache
def directory_of(kind: str) -> str:
    """One for all tests, which only read it."""
    return str(save(build(kind), Path(mkdtemp(prefix="baton-hf-")) / kind))
