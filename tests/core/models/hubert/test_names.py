"""Import and export: bit-equal round trips, and the models of others compute the same from what we write."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import HubertConfig as HuggingFaceConfig
from transformers import HubertForCTC, HubertModel

from core.models.hubert.model import Hubert, HubertPretraining
from core.models.hubert.names import (
    Style,
    export_state,
    huggingface_config,
    import_state,
    load_huggingface,
    read_state,
    save_huggingface,
)
from tests.closeness import assert_close
from tests.core.models.hubert.test_model import LARGE_KIND, examples, rival_of, seeded, small_config

pytestmark = pytest.mark.numerics

STYLES: list[Style] = ["torchaudio", "huggingface", "fairseq"]
KINDS = pytest.mark.parametrize("kind", [{}, LARGE_KIND, {"conv_bias": True}], ids=["base", "large", "biased"])


def other(config: Any) -> HubertPretraining:
    torch.manual_seed(99)
    return HubertPretraining(config)


def equal(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@KINDS
@pytest.mark.parametrize("style", STYLES)
def test_a_round_trip_changes_no_bit(style: Style, kind: dict[str, Any]) -> None:
    model = seeded(small_config(**kind))
    copy = other(model.config)
    assert not equal(model, copy)
    state = {name: tensor.clone() for name, tensor in export_state(model, style).items()}
    kept = import_state(copy, state, style)
    if style == "huggingface":  # its model has no head
        assert kept == ["head.label_embeddings", "head.projection.weight", "head.projection.bias"]
        copy.head.load_state_dict(model.head.state_dict())
    else:
        assert kept == []
    assert equal(model, copy)


def test_torchaudio_has_the_same_names_and_gives_back_what_it_got() -> None:
    model = seeded(small_config())
    state = rival_of(model).state_dict()  # a strict load
    copy = other(model.config)
    assert import_state(copy, state, "torchaudio") == [] and equal(model, copy)


@KINDS
def test_hugging_face_computes_the_same_hidden_states(kind: dict[str, Any], tmp_path: Path) -> None:
    model = seeded(small_config(**kind)).eval()
    save_huggingface(model, tmp_path)
    rival, report = HubertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    audio, _, _ = examples()
    with torch.no_grad():
        theirs = rival.eval()(audio, output_hidden_states=True)
        ours = model.hubert(audio, torch.full((3,), audio.size(1))).hidden
    assert_close(ours, theirs.last_hidden_state)
    for layer in range(1, 3):  # the last is given after the final norm
        hidden, _ = model.hubert.hidden(audio, torch.full((3,), audio.size(1)), layer=layer)
        assert_close(hidden, theirs.hidden_states[layer])


def test_a_saved_model_is_read_back_with_its_head(tmp_path: Path) -> None:
    model = seeded(small_config())
    save_huggingface(model, tmp_path)
    copy = other(model.config)
    assert load_huggingface(copy, tmp_path) == [] and equal(model, copy)
    trunk = Hubert(model.config)
    assert load_huggingface(trunk, tmp_path) == [] and equal(trunk, model.hubert)


def test_a_fine_tuned_model_of_hugging_face_gives_its_body() -> None:
    config = small_config(**LARGE_KIND)
    facts = {name: value for name, value in huggingface_config(config).items() if name != "architectures"}
    rival = HubertForCTC(HuggingFaceConfig(**facts))
    state = {name: tensor for name, tensor in rival.state_dict().items() if not name.startswith("lm_head.")}
    trunk = Hubert(config)
    assert import_state(trunk, state, "huggingface") == []
    audio, _, _ = examples()
    with torch.no_grad():
        theirs = rival.hubert.eval()(audio).last_hidden_state
        ours = trunk.eval()(audio, torch.full((3,), audio.size(1))).hidden
    assert_close(ours, theirs)


# What fairseq's hubert_base has for our small model: module names of its source.
FAIRSEQ = """mask_emb label_embs_concat final_proj.weight final_proj.bias
feature_extractor.conv_layers.0.0.weight feature_extractor.conv_layers.0.2.weight feature_extractor.conv_layers.0.2.bias
feature_extractor.conv_layers.1.0.weight feature_extractor.conv_layers.6.0.weight
post_extract_proj.weight post_extract_proj.bias layer_norm.weight layer_norm.bias
encoder.pos_conv.0.bias encoder.pos_conv.0.weight_g encoder.pos_conv.0.weight_v
encoder.layers.2.self_attn.k_proj.weight encoder.layers.2.self_attn.out_proj.bias
encoder.layers.2.self_attn_layer_norm.weight encoder.layers.2.fc1.weight encoder.layers.2.fc2.bias
encoder.layers.2.final_layer_norm.bias encoder.layer_norm.weight encoder.layer_norm.bias"""


def test_fairseq_names() -> None:
    base = export_state(seeded(small_config()), "fairseq")
    assert set(FAIRSEQ.split()) <= base.keys()
    large = export_state(seeded(small_config(**LARGE_KIND)), "fairseq")
    assert {"feature_extractor.conv_layers.0.2.1.weight", "feature_extractor.conv_layers.6.2.1.bias"} <= large.keys()
    torchaudios = torch.nn.ModuleDict({"w": rival_of(seeded(small_config())).wav2vec2})
    from torchaudio.models.wav2vec2.utils.import_fairseq import _convert_state_dict

    converted = _convert_state_dict(base)  # torchaudio's own importer knows each name
    converted.pop("label_embs_concat")
    old = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    converted = {
        ".".join(old.get(part, part) for part in name.split(".")): tensor for name, tensor in converted.items()
    }
    torchaudios["w"].load_state_dict(converted, strict=True)


def test_the_special_symbols_of_fairseqs_dictionary_are_dropped() -> None:
    """Its 504 embeddings for 500 clusters begin with those of <s>, <pad>, </s> and <unk>."""
    model, copy = seeded(small_config()), other(small_config())
    state = export_state(model, "fairseq")
    state["label_embs_concat"] = torch.cat([torch.full((4, 12), 7.0), state["label_embs_concat"]])
    assert import_state(copy, state, "fairseq") == [] and equal(model, copy)
    for rows in (3, 5):
        state["label_embs_concat"] = torch.zeros(7 + rows, 12)
        with pytest.raises(ValueError, match="label_embs_concat is"):
            import_state(copy, state, "fairseq")
    torchaudios = export_state(model, "torchaudio")
    torchaudios["logit_generator.label_embeddings"] = torch.zeros(11, 12)
    with pytest.raises(ValueError, match="label_embeddings is"):
        import_state(copy, torchaudios, "torchaudio")


def test_a_published_model_may_be_a_bin(tmp_path: Path) -> None:
    model, trunk = seeded(small_config()), Hubert(small_config())
    torch.save(export_state(model, "huggingface"), tmp_path / "pytorch_model.bin")
    assert load_huggingface(trunk, tmp_path) == [] and equal(trunk, model.hubert)


def test_prefixes_old_norms_and_flat_conv2d_weights_are_understood(tmp_path: Path) -> None:
    model = seeded(small_config())
    state: dict[str, Tensor] = {}
    for name, tensor in export_state(model, "torchaudio").items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        flat = name.endswith("conv.weight") and "feature_extractor" in name
        state[f"model.{name}"] = tensor[..., None] if flat else tensor
    path = tmp_path / "epoch=220-step=241553.ckpt"
    torch.save({"state_dict": state, "epoch": 220}, path)
    copy = other(model.config)
    assert import_state(copy, read_state(path), "torchaudio") == [] and equal(model, copy)


def test_a_checkpoint_with_other_classes_in_it_is_not_opened(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1)}, "path": tmp_path}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="refused: pathlib"):
        read_state(tmp_path / "bad.pt")


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    model = seeded(small_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = export_state(other(small_config(num_classes=9)), "fairseq")
    state["decoder.weight"] = torch.zeros(1)
    del state["layer_norm.bias"]
    with pytest.raises(ValueError, match="do not fit the model") as error:
        import_state(model, state, "fairseq")
    message = str(error.value)
    assert "label_embs_concat is (9, 12) instead of (7, 12)" in message
    assert "decoder.weight is unexpected" in message and "feature_projection.layer_norm.bias is missing" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_head_file_is_apart(tmp_path: Path) -> None:
    model = seeded(small_config())
    save_huggingface(model, tmp_path)
    assert not any("proj" in name and "final" in name for name in load_file(tmp_path / "model.safetensors"))
    assert set(load_file(tmp_path / "pretraining_head.safetensors")) == set(model.head.state_dict())
