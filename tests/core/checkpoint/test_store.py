"""Checkpoints in the ordinary course: exact, in the background, by one rank and by two."""

import json
import subprocess
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from core.background import in_background
from core.checkpoint.store import BestConfig, CheckpointConfig, CheckpointError
from core.distributed import Ranks
from tests.core.checkpoint.checkpoints import TinyEngine, flip, names, restored, save_steps, store
from tests.ranks import run_on_ranks


def test_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = store(tmp_path / "checkpoints", token=7)
    assert checkpoints.newest() is None
    checkpoints.save(TinyEngine().at(12), {"step": 12, "position": [0, 3, 1]}, step=12, wait=True)
    directory = tmp_path / "checkpoints/step_00000012"
    assert names(tmp_path / "checkpoints") == ["step_00000012"]
    assert names(directory) == ["COMPLETE", "hashes.json", "state.json", "weights"]
    assert json.loads((directory / "state.json").read_text()) == {"step": 12, "position": [0, 3, 1]}
    marker, hashes = (json.loads((directory / name).read_text()) for name in ("COMPLETE", "hashes.json"))
    assert (marker["step"], marker["token"]) == (12, 7)
    for name, entry in hashes["files"].items():  # against the program b2sum
        output = subprocess.check_output(["b2sum", "-l", "256", directory / name], text=True)
        assert output.split()[0] == entry["blake2b"]
        assert (directory / name).stat().st_size == entry["bytes"]
    assert set(hashes["files"]) == {"state.json", "weights/.metadata", "weights/__0_0.distcp"}
    output = subprocess.check_output(["b2sum", "-l", "256", directory / "hashes.json"], text=True)
    assert output.split()[0] == marker["hashes"]
    assert checkpoints.newest() == directory
    assert checkpoints.save_s > 0


def test_the_newest_comes_back_and_a_fresh_run_has_none(tmp_path: Path) -> None:
    engine = TinyEngine().at(5)
    assert store(tmp_path / "none").restore(engine) is None and engine.step == 5
    assert not (tmp_path / "none").exists()
    save_steps(store(tmp_path), 10, 20)
    assert restored(tmp_path) == ({"step": 20}, 20)


def test_a_save_is_what_was_when_it_began(tmp_path: Path) -> None:
    engine = TinyEngine(size=500).at(1)
    state = {"step": 1, "losses": [1.0]}
    checkpoints = store(tmp_path)
    checkpoints.save(engine, state, step=1)
    polls = 0
    while not (tmp_path / "step_00000001/COMPLETE").exists():
        engine.at(2)
        state["losses"] = [2.0]
        checkpoints.poll()
        polls += 1
    assert polls > 1
    checkpoints.wait()
    other = TinyEngine(size=500)
    assert store(tmp_path).restore(other) == {"step": 1, "losses": [1.0]}
    assert other.step == 1


def test_the_main_thread_is_held_only_while_the_state_is_copied(tmp_path: Path) -> None:
    gate: Future[None] = Future()

    class Slow(TinyEngine):
        def save(self, directory: Path) -> Future[None]:
            written = super().save(directory)
            return in_background(lambda: (gate.result(), written.result())[1], name="slow")

    checkpoints = store(tmp_path)
    checkpoints.save(Slow().at(1), {}, step=1)
    checkpoints.poll()  # under way
    assert checkpoints.newest() is None
    gate.set_result(None)
    checkpoints.wait()
    assert checkpoints.newest() is not None
    synchronous = store(tmp_path, asynchronous=False)
    synchronous.save(TinyEngine().at(2), {}, step=2)
    assert (tmp_path / "step_00000002/COMPLETE").exists()


def test_a_step_that_is_saved_is_left_alone(tmp_path: Path) -> None:
    save_steps(store(tmp_path), 10)
    before = (tmp_path / "step_00000010/COMPLETE").stat().st_mtime_ns
    store(tmp_path, token=2).save(TinyEngine().at(99), {"step": 99}, step=10, wait=True)
    assert (tmp_path / "step_00000010/COMPLETE").stat().st_mtime_ns == before
    assert restored(tmp_path) == ({"step": 10}, 10)


def test_a_poll_costs_nothing_while_nothing_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = store(tmp_path)
    monkeypatch.setattr(Ranks, "_reduced", lambda *_: pytest.fail("a collective"))
    checkpoints.poll()
    checkpoints.wait()


def test_state_that_is_not_json_is_refused_at_once(tmp_path: Path) -> None:
    for state in ({"x": float("nan")}, {"x": torch.zeros(1)}):
        with pytest.raises((ValueError, TypeError)):
            store(tmp_path).save(TinyEngine(), state, step=1)
    assert names(tmp_path) == []


def test_weights_only(tmp_path: Path) -> None:
    save_steps(store(tmp_path / "run"), 10)
    engine = TinyEngine()
    store(tmp_path / "other").load_weights_only(engine, tmp_path / "run/step_00000010")
    assert engine.step == 10
    (tmp_path / "run/step_00000010/COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        store(tmp_path / "other").load_weights_only(engine, tmp_path / "run/step_00000010")


def test_config_is_checked() -> None:
    for wrong in ({"keep_last": 0}, {"every_steps": 0}, {"keep_every_steps": -1}):
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            CheckpointConfig(**wrong)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        BestConfig(metric="x", mode="min", k=0)
    checkpoints = store(Path("unused"), every_steps=5)
    assert [step for step in range(1, 12) if checkpoints.is_due(step)] == [5, 10]
    assert not store(Path("unused")).is_due(5)


def test_an_engine_that_writes_at_once(tmp_path: Path) -> None:
    """Any engine will do: files without a rank in their names, in folders, written before `save` comes back."""

    class Plain:
        def save(self, directory: Path) -> Future[None]:
            (directory / "deep").mkdir(parents=True)
            (directory / "deep/mp_rank_00_model_states.pt").write_text("5")
            written: Future[None] = Future()
            written.set_result(None)
            return written

        def load(self, directory: Path, *, weights_only: bool = False) -> None:
            assert (directory / "deep/mp_rank_00_model_states.pt").read_text() == "5"

    checkpoints = store(tmp_path)
    checkpoints.save(Plain(), {"a": 1}, step=5, wait=True)
    state: Mapping[str, Any] | None = checkpoints.restore(Plain())
    assert state == {"a": 1}
    flip(tmp_path / "step_00000005/weights/deep/mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="none can be loaded"):
        checkpoints.restore(Plain())


def on_two_ranks(ranks: Ranks, directory: Path) -> list[Any]:
    torch.manual_seed(0)
    engine = TinyEngine(size=100, ranks=ranks)
    checkpoints = store(directory, ranks=ranks, keep_last=2)
    seen: list[Any] = [checkpoints.restore(engine)]
    for step in range(1, 40):
        engine.at(step)
        checkpoints.poll()
        ranks.total([1.0])
        if step in (10, 20, 30):
            checkpoints.save(engine, {"step": step}, step=step, metrics={"wer": 1 / step})
    checkpoints.wait()
    ranks.barrier()
    seen.append(names(directory))
    seen.append((checkpoints.restore(engine), engine.step))
    ranks.barrier()
    if ranks.rank == 0:
        flip(directory / "step_00000030/weights/__1_0.distcp")
    ranks.barrier()
    seen.append((checkpoints.restore(engine), engine.step))
    ranks.barrier()
    seen.append(names(directory))
    return seen


def test_two_ranks_save_verify_and_walk_back_together(tmp_path: Path) -> None:
    first, second = run_on_ranks(on_two_ranks, 2, tmp_path)
    assert first == second
    assert first[0] is None
    assert first[1] == ["step_00000020", "step_00000030"]
    assert first[2] == ({"step": 30}, 30)
    assert first[3] == ({"step": 20}, 20)
    assert first[4] == ["step_00000020", "step_00000030.damaged"]
    hashes = json.loads((tmp_path / "step_00000020/hashes.json").read_text())["files"]
    assert set(hashes) == {"state.json", "weights/.metadata", "weights/__0_0.distcp", "weights/__1_0.distcp"}
    engine = TinyEngine(size=100)
    assert store(tmp_path).restore(engine) == {"step": 20} and engine.step == 20
