"""Labels of both iterations: made once, by any number of ranks, whatever interrupts it, and of nothing else."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data import shared_work
from core.data.index import ManifestIndex
from core.rundir.exit_codes import ExitCode
from core.rundir.files import BAD_SAMPLES, CLUSTERS, SCORES
from core.rundir.ledger import pieces_so_far
from core.rundir.whole_files import append_record, read_json, read_records, write_json
from core.units.feature_store import remove_features, write_features
from core.units.kmeans import Codebook
from core.units.label_store import LabelShards, LabelStore
from tests.recipes import hubert_runs, runs

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


def _recorded(function: Callable[..., Any], log: Path, name: Callable[..., str]) -> Callable[..., Any]:
    """The function, which writes down what it made: (name, process)."""

    def called(*arguments: Any, **settings: Any) -> Any:
        time.sleep(0.05)  # as real shards take time
        result = function(*arguments, **settings)
        append_record(log, {"name": name(*arguments), "pid": os.getpid()})
        return result

    return called


def _record_shards(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    features = _recorded(write_features, log, lambda path, clips: path.name)
    monkeypatch.setattr("core.units.labelling.write_features", features)
    labels = _recorded(LabelShards.write, log, lambda shards, shard, found: f"labels/{shards.directory.name}/{shard}")
    monkeypatch.setattr(LabelShards, "write", labels)


def _made(log: Path, what: str) -> list[str]:
    return sorted(record["name"] for record in read_records(log) if record["name"].startswith(what))


@pytest.mark.parametrize("iteration", ITERATIONS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("where", ["features", "labels"])
def test_an_interrupted_preparation_goes_on(
    where: str, how: int, iteration: int, configs: dict[int, Path], whole: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        if where == "features":
            patch.setattr("core.units.labelling.write_features", _nth(2, write_features, how))
        else:
            patch.setattr(LabelShards, "write", _nth(2, LabelShards.write, how))
        codes, text = _prepare(configs, tmp_path, whole, iteration=iteration)
        assert codes == [-9 if how == signal.SIGKILL else ExitCode.CONTINUE], text
    made = len(list((tmp_path / f"labels{iteration}").rglob("*-of-00003.np?")))
    assert made == (1 if how == signal.SIGKILL else 2)
    if how == signal.SIGTERM:  # progress, so that the chain goes on
        assert pieces_so_far(tmp_path / f"labels{iteration}") == (2 if where == "features" else 3 + 2)
    _record_shards(monkeypatch, tmp_path / "made.jsonl")
    codes, text = _prepare(configs, tmp_path, whole, iteration=iteration)
    assert codes == [ExitCode.DONE], text
    prefix = {"features": "train-", "labels": "labels/train/"}[where]
    assert len(_made(tmp_path / "made.jsonl", prefix)) == 3 - made, "only what was missing"
    assert _labels(tmp_path / f"labels{iteration}") == _labels(whole / f"labels{iteration}")


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_shards_cut_short_are_made_again(
    iteration: int, configs: dict[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One killed in the middle of a shard, which leaves a part of a file, and shards that a full disk has cut."""

    def dies(path: Path, clips: Any, *, dim: int) -> int:
        def some() -> Any:
            yield next(clips)
            os.kill(os.getpid(), signal.SIGKILL)

        return write_features(path, some() if len(list(path.parent.glob("*-of-*"))) == 4 else clips, dim=dim)

    run = tmp_path / f"labels{iteration}"
    with monkeypatch.context() as patch:
        patch.setattr("core.units.labelling.write_features", dies)
        assert _prepare(configs, tmp_path, whole, iteration=iteration)[0] == [-9]
    assert list((run / "features").glob(".train-*")), "a part of a file"
    shards = sorted((run / "features").glob("train-*-of-00003.npy"))
    shards[0].write_bytes(shards[0].read_bytes()[:-7])
    _record_shards(monkeypatch, tmp_path / "made.jsonl")
    codes, text = _prepare(configs, tmp_path, whole, iteration=iteration)
    assert codes == [ExitCode.DONE], text
    assert len(_made(tmp_path / "made.jsonl", "train-")) == 2
    assert _labels(run) == _labels(whole / f"labels{iteration}")
    assert not (run / "features").exists()
    assert {path.name for path in (run / "labels" / "train").iterdir()} == {"card.json", "labels.npy", "offsets.npy"}


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_several_jobs_share_the_labels_of_one_run(
    iteration: int, configs: dict[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is killed in the middle of a shard, one of two ranks, and one alone."""
    if iteration == 2:
        (tmp_path / "tiny1").symlink_to(whole / "tiny1")
    log = tmp_path / "made.jsonl"
    _record_shards(monkeypatch, log)
    monkeypatch.setattr(shared_work, "POLL_S", 0.05)

    def begin(number: int, num_ranks: int = 1) -> runs.Job:
        words = (f"run.name=job{number}", "labelling.run=shared", f"labelling.helper={number}")
        recipe = hubert_runs.PREPARE[iteration]
        return runs.begin(configs[iteration], tmp_path, *words, recipe=recipe, num_ranks=num_ranks)

    with monkeypatch.context() as patch:
        patch.setattr(LabelShards, "write", _nth(2, LabelShards.write, signal.SIGKILL))
        victim = begin(0)
    others = [begin(1, num_ranks=2), begin(2)]
    assert victim.wait(120) in ([-9], [ExitCode.DONE]), victim.text
    assert [job.wait(120) for job in others] == [[ExitCode.DONE] * 2, [ExitCode.DONE]], [job.text for job in others]
    splits = {"labels/train": 3, "labels/dev": 3, "train-": 3}
    assert {what: len(set(_made(log, what))) for what in splits} == splits
    assert {what: len(_made(log, what)) for what in splits} == splits, "none twice"
    assert _labels(tmp_path / "shared") == _labels(whole / f"labels{iteration}")
    assert not list((tmp_path / "shared").rglob("*-of-*"))


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_what_a_kill_after_the_last_shard_leaves_is_cleared(
    iteration: int, configs: dict[int, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / f"labels{iteration}"
    with monkeypatch.context() as patch:  # there is a codebook, and its features are still there
        patch.setattr("core.units.labelling.remove_features", _nth(1, remove_features, signal.SIGKILL))
        assert _prepare(configs, tmp_path, whole, iteration=iteration)[0] == [-9]
    assert (run / "codebook.safetensors").exists() and (run / "features").exists()
    with monkeypatch.context() as patch:  # there is a label store, and its shards are still there
        patch.setattr(LabelShards, "remove", _nth(1, LabelShards.remove, signal.SIGKILL))
        assert _prepare(configs, tmp_path, whole, iteration=iteration)[0] == [-9]
    assert not (run / "features").exists() and (run / "labels" / "train" / "shards").exists()
    codes, text = _prepare(configs, tmp_path, whole, iteration=iteration)
    assert codes == [ExitCode.DONE], text
    assert not list(run.rglob("shards")) and _labels(run) == _labels(whole / f"labels{iteration}")


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


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_a_finished_preparation_has_nothing_to_do(iteration: int, configs: dict[int, Path], whole: Path) -> None:
    codes, text = hubert_runs.prepare(configs[iteration], whole, iteration=iteration)
    assert codes == [ExitCode.DONE] and "nothing to do" in text


def test_what_was_made_otherwise_is_refused(configs: dict[int, Path], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "labels1", tmp_path / "labels1")
    (tmp_path / "labels1" / "DONE").unlink()
    codes, text = hubert_runs.prepare(configs[1], tmp_path, "features.convention=torchaudio", iteration=1)
    assert codes == [ExitCode.CONFIG] and "features: mfcc:kaldi -> mfcc:torchaudio" in text, text


def test_labels_of_before_manifests_were_known_by_ids_are_gone_on_with(
    configs: dict[int, Path], whole: Path, tmp_path: Path
) -> None:
    """Their prints are of lengths alone."""
    run = tmp_path / "labels1"
    shutil.copytree(whole / "labels1", run)
    (run / "DONE").unlink()
    codebook, facts = Codebook.load(run / "codebook.safetensors")
    facts["manifests"] = {name: known.partition("-")[0] for name, known in facts["manifests"].items()}
    codebook.save(run / "codebook.safetensors", **facts)
    card = read_json(run / "labels" / "train" / "card.json")
    write_json(run / "labels" / "train" / "card.json", card | {"manifest": card["manifest"].partition("-")[0]})
    shutil.rmtree(run / "labels" / "dev")
    codes, text = hubert_runs.prepare(configs[1], tmp_path, iteration=1)
    assert codes == [ExitCode.DONE], text
    assert _labels(run) == _labels(whole / "labels1")


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
