"""Encoders from directories of Hugging Face models, offline, in fp32; what does not fit is an error, not a warning."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from core.unpickling import check_torch_file

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]

# Parts that checkpoints have beside the encoder: heads of pretraining and fine-tuning, decoders, poolers.
_BESIDE = re.compile(
    r"(?:.+\.)?(?:lm_head|cls|classifier|classification_head|qa_outputs|projector|pooler|quantizer|project_hid|"
    r"project_q|decoder|proj_out|masked_spec_embed|vocab_\w+|position_ids|generator_\w+|discriminator_predictions|"
    r"head|final_logits_bias|label_embs_concat|final_proj)\b.*"
)


def read_model_type(path: Path, *, accepted: Collection[str] | None) -> str:
    """Read a directory's `model_type`. ValueError where no model is, or none of those accepted (None: any)."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory; name one of a Hugging Face model: config.json, model.safetensors")
    file = path / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content["model_type"]
    except FileNotFoundError:
        raise ValueError(f"{path} has no config.json, so it is no directory of a Hugging Face model") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no configuration of a Hugging Face model: {error!r}") from None
    if accepted is not None and found not in accepted:
        raise ValueError(f"{path} holds a model of type {found}; expected one of {', '.join(sorted(accepted))}")
    return str(found)


def load_pretrained(
    path: Path, *, attention: Attention, changes: Mapping[str, Any], may_miss: Collection[str] = ()
) -> nn.Module:
    """Load the model of a directory that `read_model_type` accepted, with `changes` to its config.

    ValueError for weights that are not there, for ones that the model lacks or expects in vain (heads and decoders are
    passed over, `may_miss` begins at random) and for ones of another size, all in one message.
    """
    from transformers import AutoConfig, AutoModel

    _check_weights(path)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            for name, value in changes.items():
                setattr(config, name, value)
            model, info = AutoModel.from_pretrained(
                path, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
                attn_implementation=None if attention == "auto" else attention,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        first_lines = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be loaded (attention={attention}): {first_lines}") from error
    missing = [name for name in info["missing_keys"] if not _BESIDE.fullmatch(name) and name not in may_miss]
    unexpected = [name for name in info["unexpected_keys"] if not _BESIDE.fullmatch(name)]
    other_size = [f"{name} {tuple(theirs)} instead of {tuple(ours)}" for name, theirs, ours in info["mismatched_keys"]]
    found = {"missing": missing, "unexpected": unexpected, "of another size": other_size}
    if any(found.values()):
        told = "; ".join(f"{what}: {_some(names)}" for what, names in found.items() if names)
        raise ValueError(f"{path}: the weights do not fit its config.json ({type(model).__name__}): {told}")
    return model


def cut_layers(model: nn.Module, *, hidden_state: int) -> nn.ModuleList:
    """Keep the layers up to `hidden_states[hidden_state]`, which becomes the output, and return those that are kept.

    Numbered as Hugging Face does: 0 goes into the first layer, 1 comes out of it, -1 is the last, after the final norm
    where there is one. ValueError for a number that is not there.
    """
    layers = find_layers(model)
    num_layers = len(layers)
    last = hidden_state if hidden_state >= 0 else num_layers + 1 + hidden_state
    if not 1 <= last <= num_layers:
        raise ValueError(f"hidden_state={hidden_state} must be 1 to {num_layers}, or -{num_layers} to -1")
    if last < num_layers:
        del layers[last:]
        model.config.num_hidden_layers = last  # type: ignore[union-attr]
        for owner in [module for module in model.modules() if layers in module.children()]:
            for name in ("layer_norm", "final_norm"):
                if hasattr(owner, name) and _norm_is_last(owner):
                    setattr(owner, name, nn.Identity())
    return layers


def find_layers(model: nn.Module) -> nn.ModuleList:
    num_layers = model.config.num_hidden_layers  # type: ignore[union-attr]
    for name, module in model.named_modules():
        is_called_so = name.rpartition(".")[2] in ("layers", "layer")  # conv_layers may be as many
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and is_called_so:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {num_layers} layers; it is none of the encoders known")


def _norm_is_last(owner: nn.Module) -> bool:
    """Tell where the norm stands: wav2vec 2.0 base and its kin have it before the layers."""
    return type(owner).__name__ not in ("Wav2Vec2Encoder", "HubertEncoder", "WavLMEncoder")


def _check_weights(path: Path) -> None:
    """Check pickled weights before transformers opens them."""
    if any(path.glob("model*.safetensors")):
        return
    pickled = sorted(path.glob("pytorch_model*.bin"))
    if not pickled:
        raise ValueError(f"{path} has no weights: neither model.safetensors nor pytorch_model.bin")
    for file in pickled:
        check_torch_file(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off progress bars and reports: what matters in them is checked here."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
