"""A writer is cut off between its look at the lease and its last word: what it publishes then counts for nothing."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core.checkpoint.store import CheckpointError, CheckpointStore
from core.rundir import checkpoints as files
from core.rundir.files import CHECKPOINTS, LEASE, LINEAGE
from core.rundir.lease import Lease
from core.rundir.ledger import newest_step
from core.rundir.whole_files import write_json
from tests.core.checkpoint.checkpoints import TinyEngine, complete_steps, names, restored, save_steps, store


class Halt:
    """Holds one thread at a place until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def here(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(60)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run whose first job has saved step 10, and holds the lease."""
    write_json(tmp_path / LEASE, {"token": 1})
    save_steps(store(tmp_path / CHECKPOINTS, keep_last=1), 10)
    return tmp_path


def cut_off_at(
    step: int, run: Path, monkeypatch: pytest.MonkeyPatch, *, is_named: bool
) -> Callable[[], Exception | None]:
    """The first job saves a step, and stands still once it has looked at the lease: before or after the rename.

    What comes back lets it end, and gives what its save raised.
    """
    halt, place = Halt(), run / CHECKPOINTS
    before = place if is_named else files.temporary_directory(place, step=step, token=1)
    sync = files.fsync_directory

    def fsync_directory(directory: Path) -> None:
        if directory == before and threading.current_thread().name == "checkpoint":
            halt.here()
        sync(directory)

    old = store(place, keep_last=1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_directory", fsync_directory)
        old.save(TinyEngine().at(-step), {"step": -step}, step=step, metrics={"wer": 0.0})
        assert halt.reached.wait(60)
    write_json(run / LEASE, {"token": 2})

    def end() -> Exception | None:
        halt.go_on.set()
        try:
            old.wait()
        except CheckpointError as error:
            return error
        return None

    return end


def newcomer(run: Path) -> tuple[CheckpointStore, TinyEngine]:
    engine = TinyEngine()
    checkpoints = store(run / CHECKPOINTS, token=2, keep_last=2)
    assert checkpoints.restore(engine) == {"step": 10} and engine.step == 10
    return checkpoints, engine


def test_what_appears_after_the_takeover_does_not_count(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = cut_off_at(20, run, monkeypatch, is_named=True)
    checkpoints, engine = newcomer(run)
    save_steps(checkpoints, 15, engine=engine)
    assert end() is None, "the old job does not notice"
    assert complete_steps(run / CHECKPOINTS) == [10, 15, 20], "and removes nothing that the new one needs"
    assert (checkpoints.newest_step(), newest_step(run, [])) == (15, 15)
    third = store(run / CHECKPOINTS, token=3)
    assert third.restore(engine) == {"step": 15} and engine.step == 15
    save_steps(third, 20, engine=engine)
    assert restored(run / CHECKPOINTS, token=4) == ({"step": 20}, 20)
    assert newest_step(run, []) == 20
    assert names(run / CHECKPOINTS) == [LINEAGE, "step_00000015", "step_00000020"]
    assert not (run / CHECKPOINTS / "step_00000020/metrics.json").exists()


def test_it_does_not_bring_a_run_back_that_began_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = cut_off_at(20, tmp_path, monkeypatch, is_named=False)
    (tmp_path / CHECKPOINTS / ".step_00000020.tmp-1").rename(tmp_path / "aside")  # as a slow file system may show it
    assert store(tmp_path / CHECKPOINTS, token=2).restore(TinyEngine()) is None
    (tmp_path / "aside").rename(tmp_path / CHECKPOINTS / ".step_00000020.tmp-1")
    assert end() is None
    assert complete_steps(tmp_path / CHECKPOINTS) == [20]
    assert store(tmp_path / CHECKPOINTS, token=3).restore(TinyEngine()) is None
    assert newest_step(tmp_path, []) == 0


@pytest.mark.parametrize("is_named", [False, True])
def test_it_does_not_harm_the_same_step_of_the_new_job(
    run: Path, monkeypatch: pytest.MonkeyPatch, *, is_named: bool
) -> None:
    end = cut_off_at(20, run, monkeypatch, is_named=is_named)
    checkpoints, engine = newcomer(run)
    save_steps(checkpoints, 20, engine=engine)
    assert isinstance(end(), CheckpointError)
    assert restored(run / CHECKPOINTS, token=3) == ({"step": 20}, 20)
    assert json.loads((run / CHECKPOINTS / "step_00000020/COMPLETE").read_text())["token"] == 2
    assert names(run / CHECKPOINTS) == [LINEAGE, "step_00000010", "step_00000020"]


def test_a_step_on_its_way_to_its_marker_is_not_removed_by_an_older_job(run: Path) -> None:
    checkpoints, engine = newcomer(run)
    save_steps(checkpoints, 20, engine=engine)
    (run / CHECKPOINTS / "step_00000020/COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="not empty"):
        save_steps(store(run / CHECKPOINTS), 20)
    assert (run / CHECKPOINTS / "step_00000020/hashes.json").exists()


def test_copied_checkpoints_do_not_make_an_old_job_of_a_new_one(run: Path, tmp_path: Path) -> None:
    newcomer(run)
    (run / LEASE).unlink()
    lease = Lease(run, job_id="1")
    lease.release()
    assert lease.token == 3
