"""The predecessor's checkpoints: every tensor finds its place, or is named."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.models.csa import CsaConfig, CsaModel
from core.models.pretrained.speech import PretrainedSpeechConfig
from core.models.pretrained.text import PretrainedTextConfig
from recipes.csa_stage1.csa_names import import_predecessor
from tests.core.models.hugging_face import build, directory_of


def model_of(*, frozen: bool = True, hidden_state: int = -1) -> CsaModel:
    torch.manual_seed(5)
    speech = PretrainedSpeechConfig(path=directory_of("wav2vec2"), hidden_state=hidden_state)
    config = CsaConfig(speech=speech, text=PretrainedTextConfig(path=directory_of("bert"), frozen=frozen))
    return CsaModel(config, text_dim=32)


def predecessor(root: str) -> dict[str, Tensor]:
    """Tensors under the predecessor's names: two encoders of Hugging Face in wrappers, AttFlat, the scale."""
    generator = torch.Generator().manual_seed(11)
    names = {f"{root}.speech_model.{name}": tensor for name, tensor in build("wav2vec2").state_dict().items()}
    sizes = {"mlp.fc.linear": (16, 32), "mlp.linear": (1, 16), "linear_merge": (32, 32)}
    for name, (rows, columns) in sizes.items():
        names[f"{root}.flat.{name}.weight"] = torch.zeros(rows, columns)
        names[f"{root}.flat.{name}.bias"] = torch.zeros(rows)
    names |= {f"text_encoder.text_model.{name}": tensor for name, tensor in build("bert").state_dict().items()}
    names["logit_scale"] = torch.zeros(())
    return {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in names.items()
    }


def deepspeed(folder: Path, state: dict[str, Tensor], **more: Any) -> Path:
    """As DeepSpeed writes the states of ZeRO 0."""
    content = {
        "module": state, "buffer_names": [], "optimizer": None, "lr_scheduler": {"last_batch_iteration": 9},
        "param_shapes": [{name: tensor.shape for name, tensor in state.items()}], "sparse_tensor_module_names": set(),
        "skipped_steps": 0, "global_steps": 10, "dp_world_size": 2, "ds_config": {"fp16": {"enabled": True}},
        "ds_version": "0.17.1", "step": 10, **more,
    }  # fmt: skip
    folder.mkdir()
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    return folder


def expected_name(theirs: str) -> str:
    name = theirs.replace(".speech_model.", ".model.").replace("speech_encoder.flat.", "speech_pooling.")
    return {"logit_scale": "log_scale"}.get(name, name.replace(".text_model.", ".model."))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_deepspeed_checkpoint_fills_every_tensor(tmp_path: Path, frozen: bool) -> None:
    state, model = predecessor("speech_encoder"), model_of(frozen=frozen)
    report = import_predecessor(model, deepspeed(tmp_path / "iter_10", state))
    own = model.state_dict()
    for theirs, tensor in state.items():
        if theirs in report.passed_over:
            of_no_use = r"masked_spec_embed|text_encoder" if frozen else r"masked_spec_embed|pooler"
            assert re.search(of_no_use, theirs)
        else:
            assert torch.equal(own[expected_name(theirs)], tensor.reshape(own[expected_name(theirs)].shape)), theirs
    assert not report.kept
    assert len(report.loaded) == len(state) - len(report.passed_over) == len(own)


def test_the_older_file_gives_the_speech_side_only(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in predecessor("audio_encoder").items()}
    weight_norm = "audio_encoder.speech_model.encoder.pos_conv_embed.conv."
    for new, old in [
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ]:
        state[f"module.{weight_norm}{old}"] = state.pop(f"module.{weight_norm}{new}")
    state["module.visual.weight"] = torch.zeros(2)
    path = tmp_path / "CSA ckpt_epoch_8.pth"
    torch.save({"model": state}, path)
    model = model_of()
    report = import_predecessor(model, path)
    g = state[f"module.{weight_norm}weight_g"]
    own = model.state_dict()
    assert torch.equal(own["speech_encoder.model.encoder.pos_conv_embed.conv.parametrizations.weight.original0"], g)
    assert torch.equal(own["speech_pooling.linear_merge.bias"], state["module.audio_encoder.flat.linear_merge.bias"])
    assert report.kept == ["log_scale"]
    assert "visual.weight" in report.passed_over and "logit_scale" in report.passed_over
    assert re.fullmatch(r"\d+ tensors loaded; 1 stay as they are: log_scale; \d+ of the file are .*", str(report))


def test_layers_behind_the_pooled_state_are_passed_over(tmp_path: Path) -> None:
    state = predecessor("speech_encoder")
    report = import_predecessor(model_of(hidden_state=2), deepspeed(tmp_path / "x", state))
    beyond = [name for name in report.passed_over if name.startswith("speech_encoder") and "masked" not in name]
    assert beyond == [name for name in state if ".encoder.layers.2." in name]


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    state = predecessor("speech_encoder")
    state["speech_encoder.fusion.weight"] = torch.zeros(3)
    del state["speech_encoder.flat.mlp.linear.bias"]
    state["speech_encoder.flat.linear_merge.bias"] = torch.zeros(7)
    state["speech_encoder.again.linear_merge.weight"] = torch.zeros(32, 32)
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = deepspeed(tmp_path / "x", state)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        import_predecessor(model, path)
    told = str(caught.value)
    assert str(path) in told
    assert "speech_encoder.fusion.weight is unknown" in told
    assert "speech_pooling.mlp.linear.bias is missing" in told
    assert "speech_encoder.flat.linear_merge.bias is (7,) instead of (32,)" in told
    assert "are both speech_pooling.linear_merge.weight" in told
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    model = model_of()

    def problem(path: Path) -> str:
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            import_predecessor(model, path)
        return str(caught.value)

    assert "does not exist" in problem(tmp_path / "none.pth")
    (tmp_path / "zero3").mkdir()
    (tmp_path / "zero3" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    assert "zero_to_fp32.py" in problem(tmp_path / "zero3")
    torch.save({"model": {"step": 3}}, tmp_path / "empty.pth")
    assert "holds no tensors by name" in problem(tmp_path / "empty.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 not a file of torch")
    assert "or is damaged" in problem(tmp_path / "broken.pth")
    unsafe = deepspeed(tmp_path / "unsafe", predecessor("speech_encoder"), loss_scaler=Path("/"))
    assert "holds more than tensors" in problem(unsafe)
    (tmp_path / "link.pth").symlink_to(tmp_path / "empty.pth")
    assert "not a plain file" in problem(tmp_path / "link.pth")
