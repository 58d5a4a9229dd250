"""Damage is found before anything is loaded, said, and walked back; a run never starts over silently."""

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from core.background import in_background
from core.checkpoint.store import CheckpointError
from core.rundir.exit_codes import ExitCode
from tests.core.checkpoint.checkpoints import TinyEngine, flip, names, restored, save_steps, store


def swap(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a flipped bit in the weights": ("weights/__0_0.distcp", flip),
    "a truncated shard": ("weights/__0_0.distcp", lambda path: os.truncate(path, path.stat().st_size - 1)),
    "an empty shard": ("weights/__0_0.distcp", lambda path: os.truncate(path, 0)),
    "a missing shard": ("weights/__0_0.distcp", Path.unlink),
    "missing metadata": ("weights/.metadata", Path.unlink),
    "changed metadata": ("weights/.metadata", flip),
    "a link instead of a shard": ("weights/__0_0.distcp", swap),
    "missing weights": ("weights", shutil.rmtree),
    "a changed state": ("state.json", flip),
    "a missing state": ("state.json", Path.unlink),
    "changed hashes": ("hashes.json", lambda path: path.write_text(path.read_text().replace("0", "1", 1))),
    "missing hashes": ("hashes.json", Path.unlink),
    "a torn marker": ("COMPLETE", lambda path: os.truncate(path, 10)),
    "an empty marker": ("COMPLETE", lambda path: os.truncate(path, 0)),
    "a missing marker": ("COMPLETE", Path.unlink),
}


@pytest.mark.parametrize("what", list(DAMAGE))
def test_damage_is_found_said_and_walked_back(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_steps(store(tmp_path), 10, 20)
    name, harm = DAMAGE[what]
    harm(tmp_path / "step_00000020" / name)
    with caplog.at_level(logging.WARNING):
        assert restored(tmp_path) == ({"step": 10}, 10)
    if what != "a missing marker":
        assert "step_00000020 is damaged and not used" in caplog.text
        assert names(tmp_path) == ["step_00000010", "step_00000020.damaged"]
    # The run goes on, saves the same step again, and continues from there.
    save_steps(store(tmp_path, token=2, keep_last=1), 20)
    assert restored(tmp_path) == ({"step": 20}, 20)
    aside = ["step_00000020.damaged"] if what != "a missing marker" else []
    assert names(tmp_path) == ["step_00000020", *aside]


def test_a_run_with_nothing_loadable_stops_and_goes_on_stopping(tmp_path: Path) -> None:
    save_steps(store(tmp_path), 10, 20)
    for step in (10, 20):
        flip(tmp_path / f"step_000000{step}/weights/__0_0.distcp")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none can be loaded: step_00000020, step_00000010") as caught:
            restored(tmp_path)
        assert caught.value.exit_code == ExitCode.STORAGE == 87
    for step in (10, 20):
        (tmp_path / f"step_000000{step}").rename(tmp_path / f"step_000000{step}.damaged")
    with pytest.raises(CheckpointError, match=r"step_00000010\.damaged"):
        restored(tmp_path)


def test_what_never_got_its_marker_goes_once_there_is_a_newer_one(tmp_path: Path) -> None:
    save_steps(store(tmp_path), 10, 15)
    (tmp_path / "step_00000015/COMPLETE").unlink()
    (tmp_path / "step_00000015/.COMPLETE.torn").write_text("")
    assert restored(tmp_path) == ({"step": 10}, 10)
    save_steps(store(tmp_path), 14)
    assert names(tmp_path) == ["step_00000010", "step_00000014", "step_00000015"]
    save_steps(store(tmp_path), 16)
    assert names(tmp_path) == ["step_00000014", "step_00000016"]


def test_killed_between_the_name_and_the_marker(tmp_path: Path) -> None:
    """The only checkpoint has its name but not its marker: everything in it was on disk before, so it may be used."""
    save_steps(store(tmp_path), 10)
    (tmp_path / "step_00000010/COMPLETE").unlink()
    assert restored(tmp_path) == ({"step": 10}, 10)
    flip(tmp_path / "step_00000010/weights/__0_0.distcp")
    with pytest.raises(CheckpointError, match="none can be loaded"):
        restored(tmp_path)


def test_a_checkpoint_of_another_model_stops_the_run_and_is_kept(tmp_path: Path) -> None:
    save_steps(store(tmp_path), 10, 20)
    with pytest.raises(CheckpointError, match=r"intact, but cannot be loaded: .*sizes differ: model\.bias"):
        store(tmp_path).restore(TinyEngine(size=4))
    assert names(tmp_path) == ["step_00000010", "step_00000020"]


def test_a_bomb_with_matching_hashes_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Malicious(TinyEngine):
        def save(self, directory: Path) -> Future[None]:
            def write() -> None:
                directory.mkdir()
                (directory / ".metadata").write_bytes(f"cposix\nsystem\n(Vtouch '{trace}'\ntR.".encode())

            return in_background(write, name="write")

    checkpoints = store(tmp_path / "checkpoints")
    save_steps(checkpoints, 10)
    checkpoints.save(Malicious(), {}, step=20, wait=True)
    with pytest.raises(CheckpointError, match=r"step_00000020.*refused: posix\.system"):
        restored(tmp_path / "checkpoints")
    assert not trace.exists()
