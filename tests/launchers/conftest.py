"""A place for runs, .sub files for the fake recipe, and the launcher as a process of its own."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launchers.environment import ROOT

Launcher = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory for runs, in a path with a space; no cluster, no GPU."""
    root = tmp_path / "my runs"
    monkeypatch.setenv("BATON_RUNS", str(root))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("BATON_LINK", raising=False)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def sub(tmp_path: Path) -> Path:
    """A .sub file, in a path with a space, that runs the fake recipe."""
    return write_sub(tmp_path / "a folder" / "fake.sub")


def write_sub(path: Path, *, header: str = "#SBATCH --job-name=fake\n", setup: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    recipe = f"{shlex.quote(sys.executable)} -m tests.launchers.fake_recipe"
    path.write_text(f'#!/bin/bash\n{header}\nset -e\n{setup}\n{recipe} "$@"\n')
    return path


@pytest.fixture
def launcher(runs: Path) -> Launcher:
    """Run ./launch.sh's program with some words."""

    def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(launcher_command(*words), capture_output=True, text=True, timeout=60)

    return run


def launcher_command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "launchers", *map(str, words)]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """An empty directory that is the whole PATH, but for the plain tools of a system."""
    folder = tmp_path / "tools"
    folder.mkdir()
    plain = "basename bash cat chmod cmp cp cut dirname env find grep head id ls mkdir mv nproc realpath rm sed sort tr"
    for name in plain.split():
        found = next(
            (Path(place, name) for place in ("/usr/bin", "/bin") if os.access(Path(place, name), os.X_OK)), None
        )
        if found:
            (folder / name).symlink_to(found)
    return folder


def write_tool(path: Path, text: str) -> Path:
    """A small shell program."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path
