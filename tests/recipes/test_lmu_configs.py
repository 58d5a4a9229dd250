"""Every YAML of lmu_gigaspeech is complete, and a run of the tiny one turns audio files into text."""

import shutil
from pathlib import Path

import pytest

from core.config.load import load
from core.rundir.exit_codes import ExitCode
from recipes.lmu_gigaspeech import train, transcribe
from recipes.lmu_gigaspeech.assembly import Config

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "lmu_gigaspeech"
AUDIO = ROOT / "manifests" / "demo" / "english" / "added.ogg"
CAUSAL = ["model.encoder.causal=true", "model.encoder.bidirectional=false", "data.features.normalize=corpus"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` and `causal`, trained."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATON_RUNS", str(folder))
        patch.chdir(ROOT)
        for name, overrides in (("tiny", []), ("causal", [*CAUSAL, "model.head.blank_bias=-2.0"])):
            words = ["--config", str(RECIPE / "tiny.yaml"), f"run.name={name}", *overrides]
            assert train.main(words) == ExitCode.DONE
    return folder


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_presets_are_there() -> None:
    names = {"config", "default", "conservative", "performance", "large", "tiny", "demo"}
    assert names <= {path.stem for path in RECIPE.glob("*.yaml")}


CONFIGS = [path for path in sorted(RECIPE.glob("*.yaml")) if not path.stem.endswith("_bench")]  # which is of core.bench


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_loads(path: Path) -> None:
    assert load(Config, path).run.name


@pytest.mark.parametrize("options", [[], ["--ngram"]])
def test_transcribes_and_reports_a_broken_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    shutil.copy(AUDIO, tmp_path / "good.ogg")
    (tmp_path / "notes.txt").write_text("no audio")
    assert transcribe.main(["--run", str(runs / "tiny"), str(tmp_path), *options]) == ExitCode.DONE
    (tmp_path / "broken.wav").write_bytes(b"RIFF, or not")
    capsys.readouterr()
    assert transcribe.main(["--run", str(runs / "tiny"), str(tmp_path), *options]) == ExitCode.DATA
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == [str(tmp_path / "good.ogg")]
    assert str(tmp_path / "broken.wav") in printed.err and "notes" not in printed.err


def test_streaming_ends_with_the_text_of_the_whole(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run", str(runs / "causal"), str(AUDIO)]
    capsys.readouterr()
    assert transcribe.main(words) == ExitCode.DONE
    whole = capsys.readouterr().out.splitlines()
    assert whole[0].split("\t")[1], "the bias of the fixture keeps blank from filling the text"
    assert transcribe.main([*words, "--stream"]) == ExitCode.DONE
    assert capsys.readouterr().out.splitlines()[-1:] == whole


def test_streaming_needs_a_causal_model_and_features(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.encoder\.causal=true"):
        transcribe.main(["--run", str(runs / "tiny"), str(AUDIO), "--stream"])
    config = load(Config, RECIPE / "tiny.yaml", [*CAUSAL[:2]])
    with pytest.raises(ValueError, match=r"data\.features\.normalize=corpus or none"):
        transcribe.check_can_stream(config)
