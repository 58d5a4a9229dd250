"""What is exported gives the same features where others load it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

from core.config.load import load, load_section
from core.distributed import joined
from core.models.csa import CsaModel
from core.models.lmu.speech import LmuSpeech, LmuSpeechConfig
from core.models.pretrained.speech import PretrainedSpeechConfig, load_speech_encoder
from core.models.text_encoder import OwnTextConfig, TextEncoder
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CONFIG, VOCABULARY
from core.rundir.whole_files import read_json
from core.text.vocabulary import CharacterVocabulary
from recipes.csa_stage1 import export
from recipes.csa_stage1.assembly import Config
from tests.closeness import assert_close
from tests.recipes import csa_runs

ONE_STEP = ("train.max_steps=1", "train.validate_every_steps=null", "parallel.strategy=ddp")

Exported = Callable[..., tuple[CsaModel, Path]]


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    """A run of one step with some encoders, exported: its model, and the folder."""

    def made(**encoders: Any) -> tuple[CsaModel, Path]:
        config = csa_runs.write_config(tmp_path / "corpus", **encoders)
        codes, text = csa_runs.train(config, tmp_path, *ONE_STEP)
        assert codes == [ExitCode.DONE], text
        run, output = tmp_path / "tiny", tmp_path / "exported"
        assert export.main(["--run", str(run), str(output)]) == 0
        with joined(device="cpu") as ranks:
            return export.open_model(load(Config, run / CONFIG), run, ranks=ranks)[0].eval(), output

    return made


def noise() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1, 16000)


def frames(model: CsaModel, audio: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.speech_encoder(audio, torch.tensor([audio.size(1)]))[0]


def test_our_hubert_is_one_of_hugging_face(exported: Exported) -> None:
    model, output = exported()
    theirs = AutoModel.from_pretrained(output / "speech_encoder").eval()
    assert type(theirs).__name__ == "HubertModel"
    extractor = AutoFeatureExtractor.from_pretrained(output / "speech_encoder")
    values = extractor(noise()[0].numpy() * 3 + 1, sampling_rate=16000, return_tensors="pt").input_values
    assert_close(values, (noise() - noise().mean()) / noise().std(unbiased=False))
    with torch.inference_mode():
        found = theirs(values).last_hidden_state
    assert_close(found, frames(model, values))
    _check_rest(model, output)


def _check_rest(model: CsaModel, output: Path) -> None:
    """Heads, the own text encoder with its characters, and the card."""
    heads = load_file(output / "heads.safetensors")
    named = {"speech_pooling", "speech_projection", "text_projection", "log_scale"}
    assert {name.split(".")[0] for name in heads} == named
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in heads.items())
    card = read_json(output / "card.json")
    assert (card["run"], card["step"], card["pairs"]["normalize"]) == ("tiny", 1, True)
    assert card["scale"] == pytest.approx(model.log_scale.exp().item())
    config = load_section(OwnTextConfig, output / "card.json", "model.text")
    encoder = TextEncoder(config, vocab_size=len(CharacterVocabulary.load(output / "text_encoder" / VOCABULARY)))
    encoder.load_state_dict(load_file(output / "text_encoder" / "model.safetensors"))


def test_encoders_of_hugging_face(exported: Exported, tmp_path: Path) -> None:
    speech, text = csa_runs.save_wav2vec2(tmp_path / "wav2vec2"), csa_runs.save_bert(tmp_path / "bert")
    model, output = exported(
        speech=f"    kind: pretrained\n    path: {speech}\n    hidden_state: 1\n",
        text=f"    kind: pretrained\n    path: {text}\n    frozen: false\n",
        tokenizer=f"    kind: huggingface\n    directory: {text}\n",
    )
    theirs = AutoModel.from_pretrained(output / "speech_encoder").eval()
    with torch.inference_mode():
        found = theirs(noise()).last_hidden_state
    assert_close(found, frames(model, noise()))
    before = AutoModel.from_pretrained(speech).eval().state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items()), "it was trained"

    tokens = AutoTokenizer.from_pretrained(output / "text_encoder")("hello", return_tensors="pt")
    bert = AutoModel.from_pretrained(output / "text_encoder", add_pooling_layer=False).eval()
    assert model.text_encoder is not None
    with torch.inference_mode():
        cls = bert(**tokens).last_hidden_state[:, 0]
        ours = model.text_encoder(tokens.input_ids, tokens.attention_mask.sum(1))
    assert_close(cls, ours)


def test_a_model_that_lost_its_last_norm_is_refused(tmp_path: Path) -> None:
    """Hugging Face would put a new one there."""
    path = csa_runs.save_wav2vec2(tmp_path / "wav2vec2", do_stable_layer_norm=True, feat_extract_norm="layer")
    cut, whole = (
        load_speech_encoder(PretrainedSpeechConfig(path=str(path), hidden_state=state)).model for state in (1, -1)
    )
    with pytest.raises(ValueError, match="export one that was trained with hidden_state=-1"):
        export.save_form(cut, tmp_path / "cut")
    export.save_form(whole, tmp_path / "whole")
    found = AutoModel.from_pretrained(tmp_path / "whole").eval()
    with torch.inference_mode():
        assert torch.equal(found(noise()).last_hidden_state, whole.eval()(noise()).last_hidden_state)


def test_an_lmu_has_our_own_form(exported: Exported) -> None:
    model, output = exported(speech=csa_runs.LMU.replace("corpus", "utterance"), pairs="    normalize: false\n")
    config = load_section(LmuSpeechConfig, output / "card.json", "model.speech")
    encoder = LmuSpeech(config).eval()
    encoder.load_state_dict(load_file(output / "speech_encoder" / "model.safetensors"))
    with torch.inference_mode():
        found = encoder(noise(), torch.tensor([16000]))[0]
    assert torch.equal(found, frames(model, noise()))


@pytest.mark.parametrize(
    ("run", "output", "problem"),
    [("nowhere", "new", "name the directory of a trained run"), ("nowhere", ".", "exists; name another folder")],
)
def test_what_cannot_be_exported(run: str, output: str, problem: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as raised:
        export.main(["--run", str(tmp_path / run), str(tmp_path / output)])
    assert raised.value.code == ExitCode.CONFIG
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
