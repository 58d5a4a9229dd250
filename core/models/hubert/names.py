"""HuBERT's tensors under the names of torchaudio, Hugging Face and fairseq: out and in, equal to the bit.

torch.save(export_state(model, "torchaudio"), path)
kept = import_state(model, read_state(path), "fairseq")        # what the file had no tensor for
save_huggingface(model, directory)                             # for HubertModel.from_pretrained(directory)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.models.hubert.config import HubertEncoderConfig
from core.models.hubert.model import Hubert, HubertPretraining
from core.rundir.whole_files import write_json
from core.unpickling import check_torch_file

Style = Literal["torchaudio", "huggingface", "fairseq"]

HEAD_FILE = "pretraining_head.safetensors"  # HubertModel has no place for the head
_LABELS, _NUM_SPECIAL = "head.label_embeddings", 4  # <s>, <pad>, </s>, <unk>

# Ours (of HubertPretraining, without `hubert.`) -> theirs; the first that matches counts.
_TRANSFORMER = [
    (r"encoder\.layers\.(\d+)\.attention\.(.+)", r"encoder.layers.\1.self_attn.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm\.(.+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(.+)", r"encoder.layers.\1.fc1.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.(.+)", r"encoder.layers.\1.fc2.\2"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.bias", "encoder.pos_conv.0.bias"),
]
_NAMES: Mapping[Style, list[tuple[str, str]]] = {
    "huggingface": [(r"mask_embedding", "masked_spec_embed")],
    "torchaudio": [
        (r"feature_projection\.(.+)", r"wav2vec2.encoder.feature_projection.\1"),
        (r"encoder\.(.+)", r"wav2vec2.encoder.transformer.\1"),
        (r"feature_extractor\.(.+)", r"wav2vec2.feature_extractor.\1"),
        (r"mask_embedding", "mask_generator.mask_embedding"),
        (r"head\.projection\.(.+)", r"logit_generator.final_proj.\1"),
        (r"head\.label_embeddings", "logit_generator.label_embeddings"),
    ],
    "fairseq": [
        (r"feature_extractor\.conv_layers\.(\d+)\.conv\.(.+)", r"feature_extractor.conv_layers.\1.0.\2"),
        (r"feature_projection\.layer_norm\.(.+)", r"layer_norm.\1"),
        (r"feature_projection\.projection\.(.+)", r"post_extract_proj.\1"),
        *_TRANSFORMER,
        (r"mask_embedding", "mask_emb"),
        (r"head\.projection\.(.+)", r"final_proj.\1"),
        (r"head\.label_embeddings", "label_embs_concat"),
    ],
}
# What others put before the names: Lightning, DDP, fine-tuned models of fairseq and Hugging Face, torchaudio.
_PREFIXES = re.compile(r"^(?:(?:module|model|w2v_encoder|w2v_model|hubert|wav2vec2)\.)+")
_OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def export_state(model: Hubert | HubertPretraining, style: Style) -> dict[str, Tensor]:
    """Return the model's tensors under others' names. Hugging Face's HubertModel has no head: it is left out."""
    return {
        _theirs(name, style, model.config): tensor.detach()
        for name, tensor in own_tensors(model).items()
        if not (style == "huggingface" and name.startswith("head."))
    }


def import_state(model: Hubert | HubertPretraining, state: Mapping[str, Tensor], style: Style) -> list[str]:
    """Copy others' tensors into the model; return our names that `state` has nothing for: mask embedding and head.

    Prefixes, the old names of weight norm, and Conv2d's weights (`as_conv1d`) are understood; fairseq's embeddings of
    the 4 special symbols of its dictionary, which stand before those of the clusters, are dropped; the head in `state`
    is passed over where the model has none. ValueError, with nothing changed, for a tensor of the body that is missing,
    one that is unexpected, and one of another size.
    """
    own, place = own_tensors(model), places(model, style)
    heads = {_plain(_theirs(f"head.{name}", style, model.config)) for name in _HEAD}
    found: dict[str, Tensor] = {}
    problems = []
    for theirs, tensor in state.items():
        name = place(theirs)
        if name is None:
            if _plain(theirs) not in heads:
                problems.append(f"{theirs} is unexpected")
            continue
        wanted = own[name].shape
        tensor = as_conv1d(tensor, wanted)
        if style == "fairseq" and name == _LABELS and len(tensor) == wanted[0] + _NUM_SPECIAL:
            tensor = tensor[_NUM_SPECIAL:]
        if tensor.shape != wanted:
            problems.append(f"{theirs} is {tuple(tensor.shape)} instead of {tuple(wanted)}")
        found[name] = tensor
    kept = [name for name in own if name not in found]
    problems += [f"{name} is missing" for name in kept if name != "mask_embedding" and not name.startswith("head.")]
    if problems:
        raise ValueError(f"these weights do not fit the model: {listed(problems)}")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return kept


def own_tensors(model: Hubert | HubertPretraining) -> dict[str, Tensor]:
    """Return the model's tensors by the names of HubertPretraining, without `hubert.`."""
    return {name.removeprefix("hubert."): tensor for name, tensor in model.named_parameters()}


def places(model: Hubert | HubertPretraining, style: Style) -> Callable[[str], str | None]:
    """Return a function from their names to those of `own_tensors`, None for one that the model has no place for."""
    place = {_plain(_theirs(name, style, model.config)): name for name in own_tensors(model)}
    return lambda theirs: place.get(_plain(theirs))


def as_conv1d(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return the weight of a Conv2d over (1, time) or (time, 1) as the Conv1d of that shape; any other as it is."""
    for dim in (2, 3):
        if tensor.dim() == 4 and tensor.size(dim) == 1 and tensor.squeeze(dim).shape == shape:
            return tensor.squeeze(dim)
    return tensor


def listed(problems: Sequence[str]) -> str:
    """Join the first problems in one text, with how many more there are."""
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{'; '.join(problems[:5])}{more}"


def read_tensors(path: Path) -> Any:
    """Read what torch.save wrote. ValueError where there is more in it than tensors and plain values."""
    check_torch_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, or of a checkpoint by torch.save that contains no other classes."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = read_tensors(path)
    for key in ("state_dict", "model"):  # Lightning, fairseq
        if isinstance(content.get(key), Mapping):
            content = content[key]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def save_huggingface(model: Hubert | HubertPretraining, directory: Path) -> None:
    """Write config.json, preprocessor_config.json and weights for HubertModel; the head gets a file of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    state = {name: tensor.contiguous() for name, tensor in export_state(model, "huggingface").items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    if isinstance(model, HubertPretraining):
        head = {name: tensor.detach().contiguous() for name, tensor in model.head.state_dict().items()}
        save_file(head, directory / HEAD_FILE)
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16000,
        "padding_value": 0.0, "padding_side": "right", "do_normalize": config.conv_norm == "layer",
        "return_attention_mask": True,
    }  # fmt: skip
    write_json(directory / "preprocessor_config.json", preprocessor)
    write_json(directory / "config.json", huggingface_config(config))


def load_huggingface(model: Hubert | HubertPretraining, directory: Path) -> list[str]:
    """Read what `save_huggingface` wrote, or a published HubertModel; return the names that it has nothing for.

    ValueError where there is neither model.safetensors nor pytorch_model.bin.
    """
    files = [directory / name for name in ("model.safetensors", "pytorch_model.bin")]
    weights = next((file for file in files if file.exists()), None)
    if weights is None:
        raise ValueError(f"{directory}: neither {files[0].name} nor {files[1].name} is in this folder")
    kept = import_state(model, read_state(weights), "huggingface")
    head = directory / HEAD_FILE
    if isinstance(model, HubertPretraining) and head.exists():
        model.head.load_state_dict(load_file(head))
        kept = [name for name in kept if not name.startswith("head.")]
    return kept


def huggingface_config(config: HubertEncoderConfig) -> dict[str, Any]:
    """Return the config.json of an equal HubertModel."""
    return {
        "model_type": "hubert", "architectures": ["HubertModel"],
        "conv_dim": [channels for channels, _, _ in config.conv_layers],
        "conv_kernel": [kernel for _, kernel, _ in config.conv_layers],
        "conv_stride": [stride for _, _, stride in config.conv_layers],
        "num_feat_extract_layers": len(config.conv_layers),
        "feat_extract_norm": config.conv_norm, "conv_bias": config.conv_bias,
        "hidden_size": config.dim, "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim, "do_stable_layer_norm": config.pre_norm,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "feat_proj_dropout": config.projection_dropout, "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout, "hidden_dropout": config.dropout,
        "layerdrop": config.layer_drop,
    }  # fmt: skip


_HEAD = ("projection.weight", "projection.bias", "label_embeddings")


def _theirs(name: str, style: Style, config: HubertEncoderConfig) -> str:
    if style == "fairseq" and (norm := re.fullmatch(r"feature_extractor\.(.+)\.layer_norm\.(.+)", name)):
        place = "2.1" if config.conv_norm == "layer" else "2"  # there the LayerNorm stands between two transpositions
        return f"feature_extractor.{norm[1]}.{place}.{norm[2]}"
    for ours, theirs in _NAMES[style]:
        if re.fullmatch(ours, name):
            return re.sub(ours, theirs, name)
    return name


def _plain(theirs: str) -> str:
    """Remove prefixes from a name, and use the new names of weight norm."""
    name = _PREFIXES.sub("", theirs)
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_OLD_WEIGHT_NORM[last]}" if last in _OLD_WEIGHT_NORM else name
