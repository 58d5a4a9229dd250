"""The model whose layer iteration 2 predicts: not there, changed, with NaN in it, of iteration 2, or published."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from core.models.hubert.names import Style
from core.rundir.checkpoints import list_complete
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, DONE, METRICS, SCORES
from core.rundir.whole_files import read_json, read_records
from core.train import trained
from core.train.trained import load_trained
from core.units.label_store import LabelStore
from recipes.hubert_iter2 import export, import_weights
from tests.recipes import finetune_runs, hubert_runs, runs


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return hubert_runs.write_configs(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(configs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs labels1, tiny1, labels2 and tiny2."""
    root = tmp_path_factory.mktemp("whole")
    hubert_runs.both_iterations(configs, root)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """Where nothing but the labels is."""
    shutil.copytree(whole / "labels2" / "labels", tmp_path / "labels2" / "labels")
    return tmp_path


def test_iteration_2_runs_alone_from_a_label_store(configs: dict[int, Path], whole: Path, root: Path) -> None:
    codes, text = hubert_runs.train(configs[2], root, "features.run=null", iteration=2)
    assert codes == [ExitCode.DONE], text
    scores = read_json(root / "tiny2" / SCORES)
    assert {name.split("/")[0] for name in scores} == {"mfcc", "layer_1", "layer_2", "step"}
    assert runs.losses(root / "tiny2") == runs.losses(whole / "tiny2")
    codes, text = hubert_runs.train(configs[2], root, "features={layer: 2}", "run.name=other", iteration=2)
    assert codes == [ExitCode.CONFIG] and "layer=1 instead of 2" in text, text
    codes, text = hubert_runs.prepare(configs[2], root, "features.run=null", "run.name=more", iteration=2)
    assert codes == [ExitCode.CONFIG] and "features.run=null: name the trained run" in text, text


def test_a_teacher_that_is_named_is_opened_before_the_first_update(configs: dict[int, Path], root: Path) -> None:
    codes, text = hubert_runs.train(configs[2], root, iteration=2)
    assert codes == [ExitCode.CONFIG] and "tiny1 is not the directory of a trained run" in text, text
    assert not (root / "tiny2" / METRICS).exists()


@pytest.mark.parametrize("how", ["replaced", "trained on"])
def test_a_teacher_with_other_weights_than_those_of_the_labels_is_refused(
    how: str, configs: dict[int, Path], whole: Path, root: Path
) -> None:
    if how == "replaced":
        (root / "tiny1").symlink_to(whole / "tiny2")
    else:
        for name in ("tiny1", "labels1"):
            shutil.copytree(whole / name, root / name)
        (root / "tiny1" / DONE).unlink()
        codes, text = hubert_runs.train(configs[1], root, "train.max_steps=7", iteration=1)
        assert codes == [ExitCode.DONE], text
    codes, text = hubert_runs.train(configs[2], root, iteration=2, num_ranks=2)
    made_by = LabelStore.open(root / "labels2" / "labels" / "train").card.checkpoint
    assert codes == [ExitCode.CONFIG] * 2 and f"were made by the weights {made_by}" in text, text
    assert not (root / "tiny2" / METRICS).exists()


def test_a_third_iteration_is_one_more_prepare(configs: dict[int, Path], whole: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny2").symlink_to(whole / "tiny2")
    words = ("features.run=tiny2", "features.layer=2")
    codes, text = hubert_runs.prepare(configs[2], tmp_path, *words, "run.name=labels3", iteration=2)
    assert codes == [ExitCode.DONE], text
    second, third = (LabelStore.open(run / "labels" / "train") for run in (whole / "labels2", tmp_path / "labels3"))
    assert third.card.layer == 2 and third.card.checkpoint not in (None, second.card.checkpoint)
    assert [len(third[row]) for row in range(len(third))] == [len(second[row]) for row in range(len(second))]
    words = (*words, "data.labels=labels3", "train.max_steps=2", "run.name=tiny3")
    codes, text = hubert_runs.train(configs[2], tmp_path, *words, iteration=2)
    assert codes == [ExitCode.DONE], text


def test_features_that_are_not_finite_name_the_clip(
    configs: dict[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(model: Any, *arguments: Any, **settings: Any) -> int:
        step = load_trained(model, *arguments, **settings)
        model.hubert.encoder.layers[0].attention.q_proj.weight.data[0, 0] = torch.nan
        return step

    monkeypatch.setattr(trained, "load_trained", spoiled)
    (tmp_path / "tiny1").symlink_to(whole / "tiny1")
    codes, text = hubert_runs.prepare(configs[2], tmp_path, iteration=2)
    assert codes == [ExitCode.CONFIG] and re.search(
        r"clip \S+: hubert features of the weights \w+ are not finite", text
    )


@pytest.mark.parametrize("style", ["torchaudio", "huggingface", "fairseq"])
def test_a_run_is_exported_and_published_weights_are_a_run(
    style: Style, configs: dict[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("BATON_RUNS", str(tmp_path))
    written = tmp_path / "files" / "published"
    assert export.main([str(whole / "tiny2"), str(written), "--format", style]) == 0
    said = capsys.readouterr().out
    words = [str(written), "--format", style, "--config", str(configs[2]), "run.name=published"]
    assert import_weights.main(words) == 0
    assert [one.step for one in list_complete(tmp_path / "published" / CHECKPOINTS)] == [0]
    codes, text = hubert_runs.prepare(configs[2], tmp_path, "features.run=published", iteration=2)
    assert codes == [ExitCode.DONE], text
    checkpoint = LabelStore.open(tmp_path / "labels2" / "labels" / "dev").card.checkpoint
    assert checkpoint is not None and checkpoint in said, "the same weights to the bit"
    if style == "huggingface":
        config = finetune_runs.write_config(tmp_path / "corpus")
        words = ["pretrained.run=published", f"pretrained.checkpoint={checkpoint}", "train.max_steps=1"]
        words += ["optim.schedule={kind: constant}"]
        codes, text = finetune_runs.finetune(config, tmp_path, *words)
        assert codes == [ExitCode.DONE], text
    else:
        words = ["run.name=published", "features.run=published", "train.max_steps=2"]
        codes, text = hubert_runs.train(configs[2], tmp_path, *words, iteration=2)
        assert codes == [ExitCode.DONE], text
        records = [record for record in read_records(tmp_path / "published" / METRICS) if record["phase"] == "train"]
        assert [record["step"] for record in records] == [1, 2]


@pytest.mark.parametrize(("words", "problem"), [
    (["{root}/nowhere", "--format", "fairseq", "run.name=x"], "nowhere: there is no such file or folder"),
    (["{root}/empty", "--format", "huggingface", "run.name=x"], "neither model.safetensors nor pytorch_model.bin"),
    (["{root}/model.pt", "--format", "torchaudio", "run.name=x", "model.ffn_dim=24"], "instead of (24, 16)"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused_and_leave_nothing(
    words: list[str], problem: str, configs: dict[int, Path], whole: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("BATON_RUNS", str(tmp_path / "runs"))
    (tmp_path / "empty").mkdir()
    export.main([str(whole / "tiny2"), str(tmp_path / "model.pt"), "--format", "torchaudio"])
    with pytest.raises(SystemExit) as ended:
        import_weights.main([*(word.format(root=tmp_path) for word in words), "--config", str(configs[2])])
    assert ended.value.code == ExitCode.CONFIG and problem in capsys.readouterr().err
    assert not (tmp_path / "runs" / "x").exists()
    with pytest.raises(SystemExit) as ended:
        export.main([str(whole / "tiny2"), str(tmp_path / "model.pt"), "--format", "torchaudio"])
    assert ended.value.code == ExitCode.CONFIG and "exists already" in capsys.readouterr().err
