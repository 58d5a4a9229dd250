"""The repository itself: small, named by its vocabulary, its commands executable."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from launchers.here.environment import ROOT

LARGEST_MIB = 40
CATCH_ALLS = re.compile(r"(^|_)(utils?|helpers?|common|misc|managers?)(_|\.|$)")
UNTRACKED = {".git", ".venv", "runs", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}


def tracked_files() -> list[Path]:
    """What git holds; where there is no git (an archive), every file but caches and runs."""
    listing = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listing.returncode == 0 and listing.stdout:
        return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not UNTRACKED & set(path.relative_to(ROOT).parts)]


def test_the_repository_stays_small() -> None:
    sizes = {path: path.stat().st_size / 2**20 for path in tracked_files()}
    largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
    assert sum(sizes.values()) < LARGEST_MIB, f"largest: {[str(path.relative_to(ROOT)) for path in largest]}"


def test_no_file_is_a_catch_all() -> None:
    assert [path for path in tracked_files() if CATCH_ALLS.search(path.name)] == []
    assert CATCH_ALLS.search("data_utils.py"), "the pattern finds what it looks for"
    assert not CATCH_ALLS.search("commonvoice.py")


@pytest.mark.parametrize("name", ["launch.sh", "run.sh", "test.sh", ".ci/run", "slurm/get_interactive_node.sh"])
def test_commands_are_executable_and_strict(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert "set -euo pipefail" in (ROOT / name).read_text()


def test_pre_commit_runs_the_checks_of_test_sh() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local", "nothing is downloaded"
    test_sh = (ROOT / "test.sh").read_text()
    for hook in repo["hooks"]:
        assert hook["name"].removesuffix(" check") in test_sh


def test_the_interactive_node_says_where_there_is_no_slurm(tmp_path: Path) -> None:
    command = ["/bin/bash", str(ROOT / "slurm/get_interactive_node.sh"), "-N", "2", "-G", "8", "-t", "10", "-p", "dev"]
    for name in ("dirname", "sed"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    env = {"PATH": str(tmp_path)}
    without = subprocess.run(command, env=env, capture_output=True, text=True)
    assert without.returncode == 85
    assert "no SLURM here" in without.stderr
    (tmp_path / "salloc").write_text('#!/bin/bash\necho "$*"\n')
    (tmp_path / "salloc").chmod(0o755)
    asked = subprocess.run(command, env=env, capture_output=True, text=True).stdout
    assert asked.startswith("--nodes 2 --ntasks-per-node 1 --time 10 --partition dev --gpus-per-node 8 srun ")
