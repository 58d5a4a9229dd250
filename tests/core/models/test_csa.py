"""The model of pairs: kinds of encoders, one call with all gradients, freezing as the predecessor's."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.config.load import load
from core.losses.contrastive import contrastive_loss
from core.models.csa import CsaConfig, CsaModel, HubertSpeechConfig
from core.models.hubert.config import HubertConfig
from core.models.pooling import PoolingConfig
from core.models.pretrained.speech import PretrainedSpeechConfig
from core.models.pretrained.text import FrozenText, PretrainedTextConfig
from core.models.text_encoder import OwnTextConfig
from core.optim.parameters import FreezeConfig, freeze
from tests.closeness import assert_close
from tests.core.models.hugging_face import directory_of

pytestmark = pytest.mark.numerics

AUDIO, NUM_SAMPLES = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0)), torch.tensor([8000, 5000, 900])
TOKENS, NUM_TOKENS = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0], [6, 0, 0, 0]]), torch.tensor([4, 2, 1])
OWN_TEXT = OwnTextConfig(dim=24, num_layers=1, num_heads=2, ffn_dim=32)


def hubert(**changes: Any) -> HubertSpeechConfig:
    sizes: dict[str, Any] = {
        "conv_layers": [[16, 10, 5], [16, 8, 8]], "dim": 32, "num_layers": 3, "num_heads": 2, "ffn_dim": 32,
        "position_kernel": 8, "position_groups": 2, "layer_drop": 0.0,
    }  # fmt: skip
    return HubertSpeechConfig(hubert=HubertConfig(**{**sizes, **changes}))


def wav2vec2() -> PretrainedSpeechConfig:
    return PretrainedSpeechConfig(path=directory_of("wav2vec2"))


def bert(**changes: Any) -> PretrainedTextConfig:
    return PretrainedTextConfig(path=directory_of("bert"), **changes)


def model_of(**changes: Any) -> tuple[CsaModel, dict[str, Tensor]]:
    """A model, and what its text side takes."""
    torch.manual_seed(0)
    config = CsaConfig(**{"speech": hubert(), "text": OWN_TEXT, **changes})
    if config.has_frozen_text:
        assert isinstance(config.text, PretrainedTextConfig)
        frozen = FrozenText(config.text, device=torch.device("cpu"))
        model = CsaModel(config, text_dim=frozen.output_dim)
        return model, {"text_features": frozen.features(TOKENS, NUM_TOKENS)}
    return CsaModel(config, vocab_size=50), {"token_ids": TOKENS, "num_tokens": NUM_TOKENS}


@pytest.mark.parametrize("speech", [hubert(), hubert(layer_drop=0.9), wav2vec2()], ids=["own", "dropping", "wav2vec2"])
@pytest.mark.parametrize("text", [OWN_TEXT, bert(), bert(frozen=False)], ids=["own", "frozen", "trained"])
@pytest.mark.parametrize("projection_dim", [None, 20])
def test_every_trained_parameter_has_a_gradient(speech: Any, text: Any, projection_dim: int | None) -> None:
    model, text_inputs = model_of(speech=speech, text=text, projection_dim=projection_dim)
    output = model.train()(AUDIO, NUM_SAMPLES, **text_inputs)
    assert output.speech.shape == output.text.shape == (3, model.output_dim)
    torch.testing.assert_close(output.speech.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(output.text.norm(dim=1), torch.ones(3))
    contrastive_loss(output, text_keys=None, num_targets=3, group=None).loss_sum.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in trained.values())
    assert not any("text_encoder" in name for name in model.state_dict()) or not model.config.has_frozen_text
    assert all(p.ndim for p in model.parameters())  # DeepSpeed takes no parameters without a dimension
    assert set(model.blocks()) <= set(model.modules())
    num_text_blocks = 1 if text is OWN_TEXT else 0 if text.frozen else 3
    assert len(model.blocks()) == 3 + num_text_blocks


def test_what_a_clip_shares_its_batch_with_changes_nothing() -> None:
    for speech in (hubert(), wav2vec2()):
        model, text_inputs = model_of(speech=speech)
        model.eval()
        both = model(AUDIO, NUM_SAMPLES, **text_inputs)
        alone = model(AUDIO[1:2, :5000], NUM_SAMPLES[1:2], token_ids=TOKENS[1:2, :2], num_tokens=NUM_TOKENS[1:2])
        assert_close(both.speech[1:2], alone.speech)
        assert_close(both.text[1:2], alone.text)


def test_the_space_is_that_of_the_text_without_projections() -> None:
    model, text_inputs = model_of(text=bert(), speech=hubert(dim=48))
    output = model.eval()(AUDIO, NUM_SAMPLES, **text_inputs)
    expected = torch.nn.functional.normalize(text_inputs["text_features"], dim=1)
    torch.testing.assert_close(output.text, expected)
    assert output.speech.shape == (3, 32)
    with pytest.raises(ValueError, match="speech has 48 and text 32; set projection_dim, or take att_flat"):
        model_of(text=bert(), speech=hubert(dim=48), pooling=PoolingConfig(kind="mean"))


def test_embeddings_are_fp32_and_scalars_are_copies() -> None:
    model, text_inputs = model_of(bias_init=-10.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(AUDIO, NUM_SAMPLES, **text_inputs)
    assert output.speech.dtype == output.text.dtype == torch.float32
    assert float(output.log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    assert output.bias is not None
    assert float(output.bias.detach()) == -10.0
    with torch.no_grad():  # an engine takes its parameters back
        model.log_scale.zero_()
        assert model.bias is not None
        model.bias.zero_()
    assert float(output.log_scale.detach()) > 2 and float(output.bias.detach()) == -10.0


def freeze_patterns(freeze_layers: int | bool | None) -> list[str]:
    """As the docstring of core/models/csa.py gives them."""
    encoder = r"speech_encoder\.model\."
    if freeze_layers is True:
        return [r"speech_encoder\."]
    if freeze_layers in (None, False):
        return [encoder + r"feature_extractor\."]
    parts = r"(feature_extractor|feature_projection|encoder\.pos_conv_embed|encoder\.layer_norm)\."
    return [encoder + parts, encoder + rf"encoder\.layers\.[0-{freeze_layers - 1}]\."]


@pytest.mark.parametrize("speech", [hubert(), wav2vec2()], ids=["own", "wav2vec2"])
@pytest.mark.parametrize("freeze_layers", [None, False, 2, True])
def test_freezing_as_the_predecessor(freeze_layers: int | bool | None, speech: Any) -> None:
    model, _ = model_of(speech=speech)
    freeze(model, FreezeConfig(patterns=freeze_patterns(freeze_layers)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_encoder = {name.removeprefix("speech_encoder.model.") for name in trained if name.startswith("speech_encoder")}
    parts = {".".join(name.split(".")[: 3 if ".layers." in name else 2]).rstrip(".") for name in of_encoder}
    layers = {f"encoder.layers.{number}" for number in range(3)}
    everything = {"encoder.pos_conv_embed", "encoder.layer_norm", *layers}
    projection = {part for part in parts if part.startswith("feature_projection")}
    if freeze_layers is True:
        assert not of_encoder
    elif freeze_layers == 2:
        assert parts == {"encoder.layers.2"}
    else:
        assert parts - projection == everything and projection
    assert {"speech_pooling.linear_merge.weight", "log_scale"} <= trained


def test_layer_drop_of_our_own_encoder_is_drawn_in_training() -> None:
    model, text_inputs = model_of(speech=hubert(layer_drop=0.9, dropout=0.0, attention_dropout=0.0))
    torch.manual_seed(0)
    output = model.train()(AUDIO, NUM_SAMPLES, **text_inputs)
    contrastive_loss(output, text_keys=None, num_targets=3, group=None).loss_sum.backward()
    layers = model.speech_encoder.blocks()
    assert any(all(not p.grad.any() for p in layer.parameters() if p.grad is not None) for layer in layers)


def test_the_configuration_is_read_by_kinds(tmp_path: Any) -> None:
    text = """
speech: {kind: pretrained, path: models/wav2vec2-base, attention: sdpa, layer_drop: 0.1}
text: {kind: pretrained, path: models/bert, pooling: mean}
pooling: {kind: att_flat, glimpses: 2}
"""
    path = tmp_path / "model.yaml"
    path.write_text(text)
    config = load(CsaConfig, path)
    assert isinstance(config.speech, PretrainedSpeechConfig)
    assert config.has_frozen_text and config.speech.layer_drop == 0.1 and config.pooling.glimpses == 2
    path.write_text(text.replace("kind: pretrained, path: models/bert, pooling: mean", "kind: own, dim: 64"))
    assert not load(CsaConfig, path).has_frozen_text
