"""Both iterations of HuBERT: a cut run is the uncut one, two ranks are one, labels of something else are refused."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.index import write_manifest
from core.rundir.checkpoints import list_complete
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, CLUSTERS, LEDGER, METRICS, REPORT, SCORES
from core.rundir.whole_files import read_json, read_records
from core.units.label_store import LabelStore
from tests.recipes import hubert_runs, runs

ITERATIONS = [1, 2]
BY_NUMBER_OF_RANKS = ("model.layer_drop=0", "model.dropout=0", "model.attention_dropout=0", "optim.lr=0.5",
                      "model.projection_dropout=0", "optim.name=sgd", "optim.max_norm=0.5", "train.max_steps=4",
                      "train.validate_every_steps=4", "checkpoint.every_steps=null")  # fmt: skip
CROSS_ENTROPY = F.cross_entropy


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return hubert_runs.write_configs(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(configs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs labels1, tiny1, labels2 and tiny2, that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    hubert_runs.both_iterations(configs, root)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """Runs to begin from: all that `whole` has but the trainings."""
    for name in ("labels1", "labels2"):
        shutil.copytree(whole / name, tmp_path / name)
    (tmp_path / "teacher").symlink_to(whole / "tiny1")
    return tmp_path


def _train(configs: dict[int, Path], root: Path, *overrides: str, iteration: int, **options: Any) -> Any:
    words = ("features.run=teacher",) if iteration == 2 else ()
    return hubert_runs.train(configs[iteration], root, *words, *overrides, iteration=iteration, **options)


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_the_end_of_a_run_compares_layers_on_the_same_frames(iteration: int, whole: Path) -> None:
    scores = read_json(whole / f"tiny{iteration}" / SCORES)
    rivals = ["mfcc", "teacher"][:iteration]
    assert {name.split("/")[0] for name in scores} == {*rivals, "layer_1", "layer_2", "step"}
    for layer in ("layer_1", "layer_2"):
        for rival in rivals:
            difference = scores[f"{layer}/pnmi"] - scores[f"{rival}/pnmi"]
            assert scores[f"{layer}/pnmi_over_{rival}"] == pytest.approx(difference)
    assert (whole / f"tiny{iteration}" / CLUSTERS).exists()
    records = read_records(whole / f"tiny{iteration}" / METRICS)
    valid = [record for record in records if record["phase"] == "valid"]
    train, dev = (LabelStore.open(whole / f"labels{iteration}" / "labels" / split) for split in ("train", "dev"))
    share = dev.counts()[train.counts().argmax()] / dev.counts().sum()
    assert share > 0 and valid[-1]["valid_unigram_accuracy"] == pytest.approx(share, abs=0.1), "of a part of the frames"
    assert all({"valid_masked_accuracy", "valid_unmasked_accuracy"} <= record.keys() for record in valid)


@pytest.mark.parametrize("iteration", ITERATIONS)
@pytest.mark.parametrize("how", ["link_steps", "SIGKILL"])
def test_a_cut_run_is_the_uncut_run(
    how: str, iteration: int, configs: dict[int, Path], whole: Path, root: Path
) -> None:
    def hook(place: int) -> None:
        if place == 7:  # in the middle of step 4
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "SIGKILL":
        words: tuple[str, ...] = ("checkpoint.asynchronous=false",)
        assert _train(configs, root, *words, iteration=iteration, hook=hook)[0] == [-9]
    else:
        words = ("run.link_steps=4",)
        assert _train(configs, root, *words, iteration=iteration)[0] == [ExitCode.CONTINUE]
    codes, text = _train(configs, root, *words, iteration=iteration)
    assert codes == [ExitCode.DONE], text
    cut, uncut = root / f"tiny{iteration}", whole / f"tiny{iteration}"
    assert len(runs.losses(cut)) == 6 and runs.losses(cut) == runs.losses(uncut)
    assert runs.samples(cut) == runs.samples(uncut)
    runs.assert_same_state(runs.state(cut), runs.state(uncut))
    assert read_json(cut / SCORES) == read_json(uncut / SCORES)


BEST = "[{metric: valid_loss, mode: min, k: 1}, {metric: train_loss, mode: min, k: 2}]"


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_the_best_by_validation_and_by_training_loss_are_kept(
    iteration: int, configs: dict[int, Path], root: Path
) -> None:
    words = ("checkpoint.every_steps=1", "checkpoint.keep_last=1", f"checkpoint.keep_best={BEST}", "run.link_steps=4")
    for code in (ExitCode.CONTINUE, ExitCode.DONE):
        codes, text = _train(configs, root, *words, "optim.lr=1.0", "train.validate_every_steps=2", iteration=iteration)
        assert codes == [code], text
    run = root / f"tiny{iteration}"
    records = list(read_records(run / METRICS))
    trained = {record["step"]: record["loss"] for record in records if record["phase"] == "train"}
    validated = {record["step"]: record["valid_loss"] for record in records if record["phase"] == "valid"}
    assert sorted(trained) == [1, 2, 3, 4, 5, 6] and sorted(validated) == [2, 4, 6]
    best = {min(validated, key=validated.__getitem__), *sorted(trained, key=trained.__getitem__)[:2]}
    kept = list_complete(run / CHECKPOINTS)
    assert {checkpoint.step for checkpoint in kept} == best | {6}
    for checkpoint in kept:
        scores = checkpoint.metrics()
        assert scores["train_loss"] == pytest.approx(trained[checkpoint.step])
        assert scores.get("valid_loss") == pytest.approx(validated.get(checkpoint.step))


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_a_finished_run_has_nothing_to_do(iteration: int, configs: dict[int, Path], whole: Path) -> None:
    run = whole / f"tiny{iteration}"
    before = {name: (run / name).read_bytes() for name in (LEDGER, METRICS, SCORES)}
    codes, text = hubert_runs.train(configs[iteration], whole, iteration=iteration)
    assert codes == [ExitCode.DONE] and "nothing to do" in text
    assert before == {name: (run / name).read_bytes() for name in before}


@pytest.mark.parametrize(("iteration", "shapes"), [(1, "false"), (2, "false"), (1, "true")])
def test_two_ranks_train_as_one(iteration: int, shapes: str, configs: dict[int, Path], root: Path) -> None:
    found = {}
    for num_ranks in (1, 2):
        words = (*BY_NUMBER_OF_RANKS, f"run.name=on{num_ranks}", f"plan.static_shapes={shapes}")
        codes, text = _train(configs, root, *words, iteration=iteration, num_ranks=num_ranks)
        assert codes == [ExitCode.DONE] * num_ranks, text
        found[num_ranks] = root / f"on{num_ranks}"
    norms = [r["grad_norm"] for r in read_records(found[1] / METRICS) if r["phase"] == "train"]
    assert min(norms) > 0.5, "clipping must be active"
    assert runs.samples(found[2]) == runs.samples(found[1])
    assert runs.losses(found[2]) == pytest.approx(runs.losses(found[1]), rel=5e-6)
    validated = [[r for r in read_records(found[n] / METRICS) if r["phase"] == "valid"][-1] for n in (1, 2)]
    for name in ("valid_masked_accuracy", "valid_unmasked_accuracy", "valid_unigram_accuracy"):
        assert validated[0][name] == pytest.approx(validated[1][name], abs=0.01), name


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_nan_on_one_rank_skips_the_update_on_both(iteration: int, configs: dict[int, Path], root: Path) -> None:
    def hook(place: int) -> None:
        F.cross_entropy = _nan if os.environ["RANK"] == "1" and place == 2 else CROSS_ENTROPY

    codes, text = _train(configs, root, iteration=iteration, num_ranks=2, hook=hook)
    assert codes == [ExitCode.DONE] * 2, text
    records = [r for r in read_records(root / f"tiny{iteration}" / METRICS) if r["phase"] == "train"]
    assert [record["skipped_updates"] for record in records] == [0, 0, 1, 1, 1, 1]  # so far
    assert [record["loss"] is None for record in records] == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("iteration", "setting", "problem"),
    [
        (1, ("model.num_classes=9", "labelling.kmeans.num_clusters=9"), "num_clusters=8 instead of 9"),
        (1, ("features.convention=torchaudio",), "features='mfcc:kaldi' instead of 'mfcc:torchaudio'"),
        (1, ("data.labels=labels2",), "features='hubert' instead of 'mfcc:kaldi'"),
        (2, ("features.layer=2",), "layer=1 instead of 2"),
        (2, ("features.smooth_frames=5",), "features='hubert' instead of 'hubert:smooth5'"),
        (2, ("features.checkpoint=0123",), "' instead of '0123'"),
        (2, ("data.train={other}/train.jsonl",), "manifest="),
        (1, ("data.labels=nowhere",), "make them with the recipe's prepare"),
    ],
)
def test_labels_of_something_else_are_refused(
    iteration: int, setting: tuple[str, ...], problem: str, configs: dict[int, Path], root: Path
) -> None:
    write_manifest(runs.demo_cuts("train", 9), root / "train.jsonl")
    words = [word.format(other=root) for word in setting]
    codes, text = _train(configs, root, *words, iteration=iteration)
    assert codes == [ExitCode.CONFIG] and problem in text, text


def test_labels_of_smoothed_frames_are_compared_beside_the_layer(configs: dict[int, Path], root: Path) -> None:
    words = ("features.run=teacher", "features.smooth_frames=3", "run.name=smooth_labels")
    codes, text = hubert_runs.prepare(configs[2], root, *words, iteration=2)
    assert codes == [ExitCode.DONE], text
    labels = [LabelStore.open(root / name / "labels" / "dev")[0] for name in ("labels2", "smooth_labels")]
    changes = [int((one[1:] != one[:-1]).sum()) for one in labels]
    assert changes[1] < changes[0]
    words = ("features.smooth_frames=3", "data.labels=smooth_labels", "train.max_steps=1")
    codes, text = _train(configs, root, *words, iteration=2)
    assert codes == [ExitCode.DONE], text
    scores = read_json(root / "tiny2" / SCORES)
    difference = scores["targets/pnmi"] - scores["teacher/pnmi"]
    assert difference != 0 and scores["targets/pnmi_over_teacher"] == pytest.approx(difference)


def test_a_report_shows_the_clusters(configs: dict[int, Path], root: Path) -> None:
    codes, text = _train(configs, root, "train.max_steps=1", iteration=1, report=True)
    assert codes == [ExitCode.DONE], text
    assert '<img alt="clusters of frames"' in (root / "tiny1" / REPORT).read_text()


def _nan(*arguments: Any, **settings: Any) -> Tensor:
    return CROSS_ENTROPY(*arguments, **settings) * torch.nan
