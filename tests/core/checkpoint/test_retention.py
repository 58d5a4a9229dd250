"""What is kept: the last, every so many, the best; nothing foreign, and nothing before there is a newer one."""

import errno
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

import pytest

from core.checkpoint.retention import check_metrics
from core.checkpoint.store import BestConfig, StorageError
from core.rundir.checkpoints import METRICS
from core.rundir.files import LINEAGE
from core.rundir.whole_files import read_json
from tests.core.checkpoint.checkpoints import TinyEngine, names, restored, save_steps, store


def test_keep_last_and_keep_every(tmp_path: Path) -> None:
    save_steps(store(tmp_path, keep_last=2, keep_every_steps=20), *range(5, 56, 5))
    assert names(tmp_path) == [f"step_{step:08d}" for step in (20, 40, 50, 55)]


@pytest.mark.parametrize("mode, best", [("min", [20, 30]), ("max", [10, 40])])
def test_keep_best_with_scores_that_come_late_or_never(
    mode: Literal["min", "max"], best: list[int], tmp_path: Path
) -> None:
    checkpoints = store(tmp_path, keep_last=1, keep_best=BestConfig(metric="wer", mode=mode, k=2))
    engine = TinyEngine()
    for step, wer in {10: 0.9, 20: 0.2, 30: 0.3, 40: 0.8, 50: 0.5, 60: float("nan"), 70: None}.items():
        checkpoints.save(engine.at(step), {}, step=step, metrics={"wer": wer} if wer and step % 20 else None)
        if wer is not None and step % 20 == 0:
            checkpoints.record_metrics(step, {"wer": wer, "other": 1.0})  # while the save is under way
        checkpoints.wait()
    assert names(tmp_path) == [f"step_{step:08d}" for step in [*best, 70]]
    first = {"min": 20, "max": 10}[mode]
    assert checkpoints.best() == tmp_path / f"step_{first:08d}"
    assert store(tmp_path).best() is None
    later = store(tmp_path, keep_last=1, keep_best=BestConfig(metric="wer", mode=mode, k=2), token=2)
    later.record_metrics(70, {"wer": 0.0 if mode == "min" else 1.0})  # after the save, in another link
    assert later.best() == tmp_path / "step_00000070"


def test_the_best_by_each_of_several_metrics_stay_over_a_resume(tmp_path: Path) -> None:
    rankings = [BestConfig(metric="valid_loss", mode="min", k=2), BestConfig(metric="train_loss", mode="min", k=1)]
    scores: dict[int, dict[str, float]] = {
        10: {"train_loss": 3.0, "valid_loss": 0.3},
        20: {"train_loss": 1.0},
        30: {"train_loss": 2.0, "valid_loss": 0.1},
        40: {"train_loss": 2.0, "valid_loss": 0.2},
        50: {"train_loss": 4.0, "valid_loss": 0.4},
        60: {"train_loss": 5.0},
    }
    for link, steps in enumerate([(10, 20, 30), (40, 50, 60)], start=1):
        checkpoints = store(tmp_path, keep_last=1, keep_best=rankings, token=link)
        for step in steps:
            checkpoints.save(TinyEngine().at(step), {}, step=step, metrics=scores[step], wait=True)
    assert [name for name in names(tmp_path) if name.startswith("step_")] == [
        f"step_{step:08d}" for step in (20, 30, 40, 60)
    ]
    assert checkpoints.best() == tmp_path / "step_00000030"


def test_a_score_that_comes_later_takes_none_away(tmp_path: Path) -> None:
    """A checkpoint is scored by training when it is saved, by validation later, perhaps in the next link."""
    first = store(tmp_path, keep_last=1, token=1)
    first.save(TinyEngine().at(10), {}, step=10, metrics={"train_loss": 1.0}, wait=True)
    first.record_metrics(10, {"valid_loss": 2.0})
    store(tmp_path, keep_last=1, token=2).record_metrics(10, {"valid_wer": 3.0})
    scores = read_json(tmp_path / "step_00000010" / METRICS)
    assert scores == {"train_loss": 1.0, "valid_loss": 2.0, "valid_wer": 3.0}


def test_a_metric_that_nobody_reports_is_named() -> None:
    known = {"valid_loss": 1.0}
    check_metrics([BestConfig(metric="valid_loss", mode="min"), BestConfig(metric="train_loss", mode="min")], known)
    with pytest.raises(
        ValueError, match=r"metric=valid_los is not among those of a validation: train_loss, valid_loss"
    ):
        check_metrics([BestConfig(metric="valid_los", mode="min")], known)


def test_nothing_foreign_is_deleted(tmp_path: Path) -> None:
    for name in ("notes", "step_5", "step_00000005_copy", ".step_00000006.tmp-x", "step_00000009"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("mine")
    (tmp_path / "step_00000007").write_text("a file")
    (tmp_path / "step_00000008").symlink_to(tmp_path / "notes")
    foreign = names(tmp_path)
    checkpoints = store(tmp_path, keep_last=1)
    save_steps(checkpoints, 10)
    (tmp_path / "step_00000010/notes.txt").write_text("a person's")
    save_steps(checkpoints, 20, 30)
    assert names(tmp_path) == sorted([*foreign, "step_00000010", "step_00000030"])
    (tmp_path / "step_00000010/notes.txt").unlink()
    (tmp_path / "step_00000010/.metrics.json.tmp").write_text("torn")
    save_steps(checkpoints, 40)
    assert names(tmp_path) == sorted([*foreign, "step_00000040"])


def test_the_old_one_goes_only_when_the_new_one_counts(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=1)
    save_steps(checkpoints, 10)

    class Failing(TinyEngine):
        def save(self, directory: Path) -> Future[None]:
            assert names(tmp_path) == [".step_00000020.tmp-1", "step_00000010"]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError):
        checkpoints.save(Failing(), {}, step=20, wait=True)
    assert names(tmp_path) == ["step_00000010"]
    save_steps(checkpoints, 20)
    assert names(tmp_path) == ["step_00000020"]


def test_dead_temporary_directories_go_at_the_start(tmp_path: Path) -> None:
    save_steps(store(tmp_path), 10)
    for token in (1, 2, 3):
        (tmp_path / f".step_00000020.tmp-{token}").mkdir()
    assert restored(tmp_path, token=2) == ({"step": 10}, 10)
    assert names(tmp_path) == [".step_00000020.tmp-3", LINEAGE, "step_00000010"]  # 3 is later than this process
