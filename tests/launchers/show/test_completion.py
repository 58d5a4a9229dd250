"""Shell completion, in the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from launchers.cli import COMMAND_NAMES
from launchers.show.completion import WORDS, completion_script
from tests.launchers.conftest import write_ledger


def complete(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    script = completion_script("bash")
    ask = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _baton_launch; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", f"{script}\n{ask}", "bash", "./launch.sh", *words]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)
    assert answer.stderr == ""
    return answer.stdout.split()


@pytest.mark.parametrize(
    "words, offered",
    [
        (["sta"], ["status"]),
        (["status", ""], ["my.run", "other", "--json"]),
        (["logs", "my"], ["my.run"]),
        (["compare", "other", "sw"], ["sweep"]),
        (["x.sub", "--clu"], ["--cluster"]),
        (["--cluster", "s"], ["slurm"]),
        (["jo"], ["job.sub"]),
        (["sweep", "sub"], ["subs/"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_what_is_offered(runs: Path, words: list[str], offered: list[str]) -> None:
    write_ledger(runs / "my.run", {"event": "started", "link": 1, "step": 0})
    write_ledger(runs / "other", {"event": "started", "link": 1, "step": 0})
    (runs / "sweep").mkdir()
    (runs / "sweep/sweep.json").touch()
    (runs / "no-run").mkdir()
    (runs / "job.sub").touch()
    (runs / "job.txt").touch()
    (runs / "subs").mkdir()
    assert complete(runs, *words) == offered


def test_every_command_is_completed() -> None:
    assert set(WORDS) - {""} == set(COMMAND_NAMES)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_the_script() -> None:
    program = completion_script("zsh") + '\nwhence -w _baton_launch\nprint "${_comps[launch.sh]}"'
    answer = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, timeout=60)
    assert "_baton_launch: function" in answer.stdout, answer.stderr
    assert "_bash_complete" in answer.stdout
