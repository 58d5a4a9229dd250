"""Labels of both iterations: made once, by any number of ranks, whatever interrupts it, and of nothing else."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.feature_store import write_features
from core.data.index import ManifestIndex
from core.data.kmeans import Codebook
from core.data.label_store import LabelShards, LabelStore
from core.runfiles import BAD_SAMPLES, CLUSTERS, SCORES, ExitCode, read_json, read_records
from tests.recipes import hubert_runs

ITERATIONS = [1, 2]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return hubert_runs.write_configs(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(configs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    hubert_runs.both_iterations(configs, root)
    return root


def _labels(run: Path) -> list[list[int]]:
    stores = [LabelStore.open(run / "labels" / split) for split in ("train", "dev")]
    return [store[row].tolist() for store in stores for row in range(len(store))]


def _prepare(configs: dict[int, Path], root: Path, whole: Path, *words: str, iteration: int, **options: Any) -> Any:
    if iteration == 2 and not (root / "tiny1").exists():
        root.mkdir(parents=True, exist_ok=True)
        (root / "tiny1").symlink_to(whole / "tiny1")
    return hubert_runs.prepare(configs[iteration], root, *words, iteration=iteration, **options)


def _nth(number: int, function: Callable[..., Any], signal_number: int) -> Callable[..., Any]:
    """The function, which in its call `number` sends the process a signal first."""
    calls = 0

    def called(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal_number)
        return function(*arguments, **settings)

    return called


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_every_frame_has_the_nearest_center(iteration: int, configs: dict[int, Path], whole: Path) -> None:
    run = whole / f"labels{iteration}"
    index = ManifestIndex.open(configs[1].parent / "train.jsonl")
    lengths = [round(float(duration) * 16000) for duration in index.durations_s]
    expected = [(length - 400) // (160, 320)[iteration - 1] + 1 for length in lengths]
    assert [len(one) for one in _labels(run)][: len(index)] == pytest.approx(expected, abs=1)
    assert {"clusters_used", "entropy_bits", "pnmi"} <= {name.split("/")[1] for name in read_json(run / SCORES)}
    assert (run / CLUSTERS).exists() and not (run / "features").exists()
    codebook, facts = Codebook.load(run / "codebook.safetensors")
    assert facts["features"] == ("mfcc:kaldi", "hubert")[iteration - 1]
    store = LabelStore.open(run / "labels" / "train", codebook=codebook.hash)
    assert store.card.layer == (None, 1)[iteration - 1] and (store.card.checkpoint is None) == (iteration == 1)


@pytest.mark.parametrize("iteration", ITERATIONS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("where", ["features", "labels"])
def test_an_interrupted_preparation_goes_on(
    where: str, how: int, iteration: int, configs: dict[int, Path], whole: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        if where == "features":
            patch.setattr("core.data.labelling.write_features", _nth(2, write_features, how))
        else:
            patch.setattr(LabelShards, "write", _nth(2, LabelShards.write, how))
        codes, text = _prepare(configs, tmp_path, whole, iteration=iteration)
        assert codes == [-9 if how == signal.SIGKILL else ExitCode.CONTINUE], text
    made = len(list((tmp_path / f"labels{iteration}").rglob("*-of-00003.np?")))
    assert made == (1 if how == signal.SIGKILL else 2)
    codes, text = _prepare(configs, tmp_path, whole, iteration=iteration)
    began = next(line for line in text.splitlines() if line.startswith(("features: 1 of", "labels of train: 1 of")))
    assert codes == [ExitCode.DONE], text
    assert f"1 of {3 - made} shards" in began, "only what was missing"
    assert _labels(tmp_path / f"labels{iteration}") == _labels(whole / f"labels{iteration}")


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_two_ranks_label_as_one(iteration: int, configs: dict[int, Path], whole: Path, tmp_path: Path) -> None:
    codes, text = _prepare(configs, tmp_path, whole, iteration=iteration, num_ranks=2)
    assert codes == [ExitCode.DONE] * 2, text
    one, two = (np.concatenate(_labels(root / f"labels{iteration}")) for root in (whole, tmp_path))
    assert len(one) == len(two) and (one == two).mean() > 0.999


def test_one_rank_that_stops_stops_both(
    configs: dict[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: LabelShards, shard: int, labels: Any) -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, shard, labels)

    original = LabelShards.write
    monkeypatch.setattr(LabelShards, "write", write)
    codes, text = _prepare(configs, tmp_path, whole, iteration=1, num_ranks=2)
    assert codes == [ExitCode.CONTINUE] * 2, text


def test_a_finished_preparation_has_nothing_to_do(configs: dict[int, Path], whole: Path) -> None:
    codes, text = hubert_runs.prepare(configs[1], whole, iteration=1)
    assert codes == [ExitCode.DONE] and "nothing to do" in text


def test_what_was_made_otherwise_is_refused(configs: dict[int, Path], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "labels1", tmp_path / "labels1")
    (tmp_path / "labels1" / "DONE").unlink()
    codes, text = hubert_runs.prepare(configs[1], tmp_path, "features.convention=torchaudio", iteration=1)
    assert codes == [ExitCode.CONFIG] and "features: mfcc:kaldi -> mfcc:torchaudio" in text, text


def test_a_clip_that_cannot_be_read_has_no_labels(tmp_path: Path) -> None:
    configs = hubert_runs.write_configs(tmp_path / "corpus")
    train = tmp_path / "corpus" / "train.jsonl"
    lines = train.read_text().splitlines()
    record = json.loads(lines[3])
    record["recording"]["sources"][0]["source"] = str(tmp_path / "missing.ogg")
    lines[3] = json.dumps(record)
    train.write_text("\n".join(lines) + "\n")
    train.with_name("train.jsonl.index.npy").unlink()
    codes, text = hubert_runs.prepare(configs[1], tmp_path / "runs", iteration=1)
    assert codes == [ExitCode.DONE], text
    assert [len(one) == 0 for one in _labels(tmp_path / "runs" / "labels1")].index(True) == 3
    found = {bad["sample_id"] for bad in read_records(tmp_path / "runs" / "labels1" / BAD_SAMPLES)}
    assert found == {record["id"]}
    codes, text = hubert_runs.train(configs[1], tmp_path / "runs", iteration=1)
    assert codes == [ExitCode.DONE] and "no labels" in text, text


def test_a_teacher_that_was_not_trained_is_named(configs: dict[int, Path], tmp_path: Path) -> None:
    codes, text = hubert_runs.prepare(configs[2], tmp_path, iteration=2)
    assert codes == [ExitCode.CONFIG] and "tiny1 is not the directory of a trained run" in text, text


def test_layers_of_a_run_need_its_checkpoint(configs: dict[int, Path], whole: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny1").mkdir()
    shutil.copy(whole / "tiny1" / "config.yaml", tmp_path / "tiny1")
    codes, text = hubert_runs.prepare(configs[2], tmp_path, iteration=2)
    assert codes == [ExitCode.CONFIG] and "has no complete checkpoint" in text, text
