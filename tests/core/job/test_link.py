"""The command that goes on, for each way in which a process may have been started."""

import sys
from pathlib import Path

import pytest

from core.job.link import restart_command

MODULE = "recipes.lmu_gigaspeech.train"
WORDS = ["--config", "/my configs/a.yaml", "optim.lr=1e-3"]
TYPED = "--config '/my configs/a.yaml' optim.lr=1e-3"


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a person, as `python -m`, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", MODULE, *WORDS])
    for name in ("BATON_LINK", "BATON_LOCAL_TASKS", "BATON_RUNS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_python() -> None:
    assert restart_command(1) == f"python -m {MODULE} {TYPED}"


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert restart_command(2) == f"torchrun --standalone --nproc-per-node 2 -m {MODULE} {TYPED}"
    assert restart_command(4) is None, "two nodes: there is no one command"


def test_run_sh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BATON_LOCAL_TASKS", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("BATON_RUNS", str(tmp_path / "runs"))
    assert restart_command(2) == f"NPROC=2 ./run.sh recipes/lmu_gigaspeech {TYPED}"
    monkeypatch.setenv("BATON_RUNS", "/all my/runs")
    assert restart_command(2) == f"BATON_RUNS='/all my/runs' NPROC=2 ./run.sh recipes/lmu_gigaspeech {TYPED}"


def test_a_launcher_and_srun_know_better(monkeypatch: pytest.MonkeyPatch) -> None:
    assert restart_command(2) is None, "srun"
    monkeypatch.setenv("BATON_LINK", "3")
    assert restart_command(1) is None
