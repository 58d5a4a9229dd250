"""A place for runs, .sub files for the fake recipe, and the launcher as a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launchers.here.environment import ROOT

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
        return subprocess.run(
            launcher_command(*words), capture_output=True, text=True, timeout=300, preexec_fn=_as_in_a_terminal
        )

    return run


def _as_in_a_terminal() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


class FakeCluster:
    """SLURM's commands as shell programs that log their arguments: for refusals, hangs and what must not be asked.

    What SLURM really does with a chain is tested in tests/slurm.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.answers("scontrol", "[ $1 = ping ] && echo 'Slurmctld(primary) at head is UP'")
        self.answers("sbatch", 'echo "Submitted batch job $((100 + $(wc -l < "$0.log")))"')
        self.answers("squeue", "")
        self.answers("scancel", "")
        self.answers("srun", "")

    def answers(self, name: str, text: str) -> None:
        """Let a command do this from now on."""
        write_tool(self.folder / name, f'printf "%s\\n" "$*" >> "$0.log"\n{text}')

    def calls(self, name: str) -> list[str]:
        """The arguments of each call of a command so far."""
        log = self.folder / f"{name}.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """A SLURM that takes every job and runs none."""
    made = FakeCluster(tmp_path / "slurm commands")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.setattr("launchers.slurm.commands.PAUSE_S", 0.01)
    return made


def write_ledger(run: Path, *records: Mapping[str, object]) -> Path:
    """A run directory with these events; what does not matter is filled in."""
    run.mkdir(parents=True, exist_ok=True)
    token = 0
    with (run / "chain.jsonl").open("a") as ledger:
        for number, record in enumerate(records):
            filled: dict[str, object] = {"time": f"2026-01-01T00:{number:02d}:00Z"}
            if record["event"] == "submitted":
                filled |= {"cluster": "slurm", "seed": 5, "argv": ["x.sub", f"run.name={run.name}"], "first_link": 1}
            if record["event"] == "started":
                token += 1
                filled |= {"host": "n1", "pid": 1, "token": token}
            ledger.write(json.dumps({**filled, **record}) + "\n")
    return run
