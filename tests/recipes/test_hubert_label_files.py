"""Labels of a run to text files and back, as a command, and a training on what came back."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from core.rundir.exit_codes import ExitCode
from core.units.label_store import LabelStore
from recipes.hubert_iter1 import label_files
from tests.recipes import hubert_runs


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return hubert_runs.write_configs(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prepared(configs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    codes, text = hubert_runs.prepare(configs[1], root, iteration=1)
    assert codes == [ExitCode.DONE], text
    return root


def files(folder: Path, split: str) -> list[str]:
    return ["--tsv", str(folder / f"{split}.tsv"), "--labels", str(folder / f"{split}.km")]


def exported(configs: dict[int, Path], folder: Path) -> list[Path]:
    manifests = [configs[1].parent / f"{split}.jsonl" for split in ("train", "dev")]
    for manifest in manifests:
        assert label_files.main(["export", str(manifest), "labels1", *files(folder, manifest.stem)]) == 0
    return manifests


def test_labels_go_out_and_come_back_and_are_trained_on(
    configs: dict[int, Path], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    shutil.copytree(prepared / "labels1", tmp_path / "labels1")
    for manifest in exported(configs, tmp_path):
        words = [str(manifest), "theirs", *files(tmp_path, manifest.stem), "--num-clusters", "8"]
        assert label_files.main(["import", *words, "--convention", "kaldi"]) == 0
        one, other = (LabelStore.open(tmp_path / run / "labels" / manifest.stem) for run in ("labels1", "theirs"))
        assert len(one) == len(other)
        assert all(np.array_equal(one[row], other[row]) for row in range(len(one)))
        assert one.card.manifest == other.card.manifest and one.card.rate_hz == other.card.rate_hz
    codes, text = hubert_runs.train(configs[1], tmp_path, "data.labels=theirs", "train.max_steps=1", iteration=1)
    assert codes == [ExitCode.DONE], text


def test_labels_of_a_layer_are_for_iteration_2(
    configs: dict[int, Path], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    shutil.copytree(prepared / "labels1", tmp_path / "labels1")
    for manifest in exported(configs, tmp_path):
        text = tmp_path / f"{manifest.stem}.km"  # every second label of MFCC: the rate of a layer
        text.write_text("".join(" ".join(line.split()[::2]) + "\n" for line in text.read_text().splitlines()))
        words = [str(manifest), "theirs", *files(tmp_path, manifest.stem), "--num-clusters", "8", "--layer", "1"]
        assert label_files.main(["import", *words]) == 0
    words_of_run = ("data.labels=theirs", "features.run=null", "train.max_steps=1")
    codes, said = hubert_runs.train(configs[2], tmp_path, *words_of_run, iteration=2)
    assert codes == [ExitCode.DONE], said


def test_what_is_there_is_left_and_what_lacks_is_said(
    configs: dict[int, Path], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("BATON_RUNS", str(prepared))
    manifest = exported(configs, tmp_path)[0]
    with pytest.raises(SystemExit) as ended:
        label_files.main(["import", str(manifest), "labels1", *files(tmp_path, "train"), "--num-clusters", "8"])
    assert ended.value.code == ExitCode.CONFIG and "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        label_files.main(["import", str(manifest), "theirs", *files(tmp_path, "train"), "--num-clusters", "3"])
    assert ended.value.code == ExitCode.CONFIG and "labels outside 0 ... 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        label_files.main(["import", str(manifest), "theirs", *files(tmp_path, "train")])
    assert "needs --num-clusters" in capsys.readouterr().err
