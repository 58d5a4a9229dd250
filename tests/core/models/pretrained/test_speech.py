"""Speech encoders of Hugging Face: what they compute without padding is theirs, and padding changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.models.pretrained.speech import PretrainedSpeechConfig, load_speech_encoder
from tests.closeness import assert_close
from tests.core.models.hugging_face import build, directory_of, save

pytestmark = pytest.mark.numerics

WAVES = ["wav2vec2", "wav2vec2-stable", "hubert", "wavlm"]
SECONDS = 16000


def encoder(kind: str, **changes: Any) -> Any:
    return load_speech_encoder(PretrainedSpeechConfig(path=directory_of(kind), **changes)).eval()


def audio(*lengths: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    rows = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randn(length)
    return rows, torch.tensor(lengths)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@torch.no_grad()
@pytest.mark.parametrize("kind", [*WAVES, "whisper"])
def test_padding_changes_nothing(kind: str) -> None:
    model = encoder(kind, **({"window_s": 3.5} if kind == "whisper" else {}))
    rows, lengths = audio(3 * SECONDS, 2 * SECONDS)
    both, frames = model(rows, lengths)
    alone, num_frames = model(rows[1:, : 2 * SECONDS], lengths[1:])
    assert frames[1] == num_frames[0] <= alone.size(1)
    assert difference(both[1, : frames[1]], alone[0, : frames[1]]) < 1e-5
    rows[1, 2 * SECONDS :] = torch.nan
    assert difference(model(rows, lengths)[0][1, : frames[1]], alone[0, : frames[1]]) < 1e-5


@torch.no_grad()
def test_stock_models_with_a_group_norm_depend_on_padding() -> None:
    """The negative control: with the attention mask and without, as the predecessor used them."""
    model, (rows, _) = build("wav2vec2"), audio(3 * SECONDS, 2 * SECONDS)
    rows[0] *= 3
    alone = model(rows[1:, : 2 * SECONDS]).last_hidden_state[0]
    mask = torch.ones_like(rows, dtype=torch.long)
    mask[1, 2 * SECONDS :] = 0
    for given in (mask, None):
        both = model(rows, attention_mask=given).last_hidden_state[1, : len(alone)]
        assert difference(both, alone) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", WAVES)
def test_without_padding_it_is_the_model_of_hugging_face(kind: str) -> None:
    rows, lengths = audio(SECONDS, SECONDS)
    hidden, frames = encoder(kind)(rows, lengths)
    expected = build(kind)(rows).last_hidden_state
    assert hidden.shape == expected.shape
    assert frames.tolist() == [expected.size(1)] * 2
    assert_close(hidden, expected)


@torch.no_grad()
def test_whisper_is_the_encoder_of_hugging_face_on_its_own_features() -> None:
    from transformers import WhisperFeatureExtractor

    rows, lengths = audio(2 * SECONDS, SECONDS)
    rows *= 0.1
    clips = [np.asarray(row[:length]) for row, length in zip(rows, lengths.tolist(), strict=True)]
    features = WhisperFeatureExtractor()(clips, sampling_rate=16000, return_tensors="pt").input_features
    expected = build("whisper").get_encoder()(features).last_hidden_state
    hidden, frames = encoder("whisper")(rows, lengths)
    assert_close(hidden, expected, rel=5e-5)
    assert frames.tolist() == [100, 50]
    with pytest.raises(ValueError, match=r"clips of 2\.00 s do not fit window_s=1\.00"):
        encoder("whisper", window_s=1.0)(rows, lengths)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*WAVES, "whisper"])
@pytest.mark.parametrize("hidden_state", [1, -2])
def test_inner_hidden_states_are_those_of_hugging_face(kind: str, hidden_state: int) -> None:
    rows, lengths = audio(SECONDS)
    if kind == "whisper":
        model = encoder(kind)
        expected = model.model(model._log_mel(nn.functional.pad(rows, (0, 29 * SECONDS))), output_hidden_states=True)
    else:
        expected = build(kind)(rows, output_hidden_states=True)
    cut = encoder(kind, hidden_state=hidden_state)
    hidden, _ = cut(rows, lengths)
    assert_close(hidden, expected.hidden_states[hidden_state])
    assert len(cut.blocks()) == (hidden_state if hidden_state > 0 else 2)


def gradients(model: nn.Module, rows: Tensor, lengths: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    hidden, frames = model(rows, lengths)
    sum(hidden[i, : frames[i]].square().sum() for i in range(len(rows))).backward()  # type: ignore[union-attr]
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", [*WAVES, "whisper"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_state": 2},
        {"fused_states": 3, "fusion_times": 2},
        {"layer_drop": 0.9},
        {"mask_time_prob": 0.5, "mask_feature_prob": 0.1},
    ],
    ids=str,
)
def test_every_parameter_has_a_gradient_in_training(kind: str, changes: dict[str, Any]) -> None:
    """Engines wait for each of them, a clip too short for a frame or not."""
    if kind == "whisper" and changes.keys() & {"mask_time_prob", "fused_states"}:
        with pytest.raises(ValueError, match=r"must be 0: .* is a Whisper model"):
            encoder(kind, **changes)
        return
    model = encoder(kind, **changes).train()
    torch.manual_seed(0)
    np.random.seed(0)
    found = gradients(model, *audio(SECONDS, 5))
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in found.values())
    if changes == {"layer_drop": 0.9}:
        layers = [name for name, gradient in found.items() if ".layers." in name and gradient is not None]
        assert sum(not found[name].any() for name in layers) >= len(layers) // 3  # type: ignore[union-attr]
    if "mask_time_prob" in changes:
        assert found["model.masked_spec_embed"].any()  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"layer_drop": 0.9}, {"mask_time_prob": 0.5}], ids=str)
def test_options_act_in_training_only(changes: dict[str, Any]) -> None:
    rows, lengths = audio(SECONDS)
    model, plain = encoder("wav2vec2", **changes), encoder("wav2vec2")
    assert torch.equal(model(rows, lengths)[0], plain(rows, lengths)[0])
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0
    assert not torch.allclose(model.train()(rows, lengths)[0], plain(rows, lengths)[0], atol=1e-2)


def test_a_frozen_front_end_keeps_nothing_for_backward() -> None:
    model = encoder("wav2vec2").train()
    rows, lengths = audio(SECONDS)
    features: list[Tensor] = []
    front_end = model.model.feature_extractor
    front_end.register_forward_hook(lambda module, inputs, output: features.append(output))
    model(rows, lengths)
    front_end.requires_grad_(False)
    model(rows, lengths)
    assert [output.requires_grad for output in features] == [True, False]


def test_directories_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def problem(path: Path, **changes: Any) -> str:
        with pytest.raises(ValueError, match=str(path)) as caught:
            load_speech_encoder(PretrainedSpeechConfig(path=str(path), **changes))
        return str(caught.value)

    assert "is not a directory" in problem(tmp_path / "nowhere")
    assert "has no config.json" in problem(tmp_path)
    assert "type bert; expected one of hubert, wav2vec2, wavlm, whisper" in problem(Path(directory_of("bert")))
    assert "window_s=2.0 must be left out" in problem(Path(directory_of("hubert")), window_s=2.0)
    with pytest.raises(ValueError, match="hidden_state=9 must be 1 to 3, or -3 to -1"):
        encoder("wav2vec2", hidden_state=9)

    broken = save(build("wav2vec2"), tmp_path / "broken")
    (broken / "config.json").write_text("{")
    assert "config.json is no configuration" in problem(broken)
    empty = save(build("wav2vec2"), tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    assert "has no weights: neither model.safetensors nor pytorch_model.bin" in problem(empty)
    torch.save({"x": Path("/")}, empty / "pytorch_model.bin")
    assert "is not opened" in problem(empty)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = save(build("wav2vec2"), tmp_path / "odd")
    state = load_file(directory / "model.safetensors")
    state["encoder.layers.0.adapter.weight"] = torch.zeros(2)
    del state["encoder.layers.1.attention.k_proj.bias"]
    state["feature_projection.projection.bias"] = torch.zeros(5)
    state["lm_head.weight"] = state["quantizer.codevectors"] = torch.zeros(3)  # heads of no use here
    save_file({name: tensor.clone() for name, tensor in state.items()}, directory / "model.safetensors")
    with pytest.raises(ValueError, match="the weights do not fit") as caught:
        load_speech_encoder(PretrainedSpeechConfig(path=str(directory)))
    told = str(caught.value)
    assert str(directory) in told
    assert "missing: encoder.layers.1.attention.k_proj.bias;" in told
    assert "unexpected: encoder.layers.0.adapter.weight;" in told
    assert "of another size: feature_projection.projection.bias (5,) instead of (32,)" in told
    assert "lm_head" not in told and "quantizer" not in told


class GeluConv(nn.Module):
    """CSRef 2.0's from its description: a 1 x 1 convolution over the states, batch norm, GELU, mixtures one by one."""

    def __init__(self, num_states: int, times: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(num_states, times, 1), nn.BatchNorm2d(times)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(self.conv(states))).flatten(1, 2)


def test_fused_states_are_the_predecessors_without_padding() -> None:
    torch.manual_seed(0)
    model, theirs = encoder("wav2vec2", fused_states=3, fusion_times=2), GeluConv(3, 2)
    theirs.load_state_dict(model.fusion.state_dict())
    rows, lengths = audio(SECONDS, SECONDS)
    states = torch.stack(build("wav2vec2")(rows, output_hidden_states=True).hidden_states[-3:], dim=1)
    for mode in (True, False):
        theirs.train(mode)
        model.fusion.train(mode)  # the encoder itself without dropout
        hidden, frames = model(rows, lengths)
        in_turn = hidden.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        assert_close(in_turn, theirs(states), rel=5e-5)
    assert frames.tolist() == [2 * states.size(2)] * 2
    torch.testing.assert_close(model.fusion.norm.running_mean, theirs.norm.running_mean)


@torch.no_grad()
def test_statistics_of_fused_states_are_of_valid_frames() -> None:
    rows, lengths = audio(3 * SECONDS, 2 * SECONDS)
    model = encoder("wav2vec2", fused_states=2)
    model.fusion.train()
    once, frames = model(rows, lengths)
    longer, _ = model(nn.functional.pad(rows, (0, SECONDS), value=7.0), lengths)
    for row, count in enumerate(frames.tolist()):
        assert_close(longer[row, :count], once[row, :count], rel=5e-5)
    with pytest.raises(ValueError, match="fused_states=5 must be at most 4"):
        encoder("wav2vec2", fused_states=5)
    with pytest.raises(ValueError, match="hidden_state=2 must be -1"):
        encoder("wav2vec2", fused_states=2, hidden_state=2)


@pytest.mark.parametrize("kind", ["wavlm", "whisper"])
def test_a_new_encoder_is_ready_to_train(kind: str) -> None:
    model = load_speech_encoder(PretrainedSpeechConfig(path=directory_of(kind)))
    assert all(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    assert all(layer.training for layer in model.blocks())


def test_weights_of_half_precision_become_fp32(tmp_path: Path) -> None:
    path = save(build("wav2vec2").bfloat16(), tmp_path / "half")
    model = load_speech_encoder(PretrainedSpeechConfig(path=str(path)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
