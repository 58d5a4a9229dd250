"""Text encoders of Hugging Face: theirs, exact under padding, frozen outside of a model or trained inside."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.models.pretrained.text import FrozenText, PretrainedText, PretrainedTextConfig
from tests.closeness import assert_close
from tests.core.models.hugging_face import build, directory_of

pytestmark = pytest.mark.numerics

KINDS = pytest.mark.parametrize("kind", ["bert", "roberta"])
TOKENS, LENGTHS = torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 1, 1]]), torch.tensor([5, 3])


def config(kind: str, **changes: Any) -> PretrainedTextConfig:
    return PretrainedTextConfig(path=directory_of(kind), **changes)


def frozen(kind: str, **changes: Any) -> FrozenText:
    return FrozenText(config(kind, **changes), device=torch.device("cpu"))


@KINDS
@pytest.mark.parametrize("hidden_state", [-1, 1, -2])
def test_features_are_those_of_hugging_face(kind: str, hidden_state: int) -> None:
    with torch.no_grad():
        alone = build(kind)(TOKENS[1:, :3], output_hidden_states=True).hidden_states[hidden_state][0]
    first = frozen(kind, hidden_state=hidden_state).features(TOKENS, LENGTHS)
    mean = frozen(kind, hidden_state=hidden_state, pooling="mean").features(TOKENS, LENGTHS)
    assert_close(first[1], alone[0])
    assert_close(mean[1], alone.mean(0))


def test_frozen_features_are_constants_that_backward_can_keep() -> None:
    encoder = frozen("bert")
    features = encoder.features(TOKENS, LENGTHS)
    assert not features.requires_grad and not features.is_inference()
    assert not any(parameter.requires_grad for parameter in encoder.encoder.parameters())
    assert torch.equal(features, encoder.features(TOKENS, LENGTHS))  # no dropout
    weights = torch.randn(32, 4, requires_grad=True)
    (features @ weights).sum().backward()
    assert weights.grad is not None


def test_features_by_autocast_come_in_fp32() -> None:
    half = FrozenText(config("bert"), device=torch.device("cpu"), dtype=torch.bfloat16).features(TOKENS, LENGTHS)
    full = frozen("bert").features(TOKENS, LENGTHS)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert_close(half, full, rel=0.05)


@KINDS
@pytest.mark.parametrize("hidden_state", [-1, 2])
def test_every_parameter_of_a_trained_one_has_a_gradient(kind: str, hidden_state: int) -> None:
    model = PretrainedText(config(kind, frozen=False, hidden_state=hidden_state)).train()
    model(TOKENS, LENGTHS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(model.blocks()) == (3 if hidden_state == -1 else 2)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 40), ("roberta", 38)])
def test_more_tokens_than_positions_are_refused(kind: str, positions: int) -> None:
    tokens: Tensor = torch.full((1, positions + 1), 5)
    encoder = frozen(kind)
    assert torch.isfinite(encoder.features(tokens[:, :-1], torch.tensor([positions]))).all()
    with pytest.raises(ValueError, match=f"{positions + 1} tokens are more than the {positions} positions"):
        encoder.features(tokens, torch.tensor([positions + 1]))


def test_a_new_encoder_is_ready_to_train_and_a_frozen_one_is_not() -> None:
    assert all(module.training for module in PretrainedText(config("bert", frozen=False)).modules())
    assert not any(module.training for module in frozen("bert").encoder.modules())


def test_a_speech_model_is_refused() -> None:
    path = directory_of("hubert")
    with pytest.raises(ValueError, match=f"{path} holds a model of type hubert; expected a text encoder"):
        PretrainedText(PretrainedTextConfig(path=path))
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        PretrainedText(PretrainedTextConfig(path=str(Path(path) / "nowhere")))
