"""What run_context.json tells, and that no secret gets into it, however it is given."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from core.distributed import Ranks
from core.job.context import is_secret, scrubbed_argv, write_run_context
from core.rundir.ledger import record_link
from core.rundir.repository import MAX_STATUS_LINES, git_state
from core.rundir.whole_files import read_json

RANKS = Ranks(0, 0, 2, dp_rank=0, dp_size=2, tp_rank=0, tp_size=1, device=torch.device("cpu"))
SECRET = "s3cr3t-0123456789abcdef"


@pytest.mark.parametrize(
    "argv",
    [
        ["train.py", "--token", SECRET, "a=1"],
        ["train.py", f"--password={SECRET}"],
        ["train.py", f"loggers.wandb.api_key={SECRET}"],
        ["env", f"WANDB_API_KEY={SECRET}", f"HF_TOKEN={SECRET}", "train.py"],
        ["train.py", f"data.train=https://me:{SECRET}@example.org/x"],
        ["train.py", f"--header=Authorization: Bearer {SECRET}"],
        ["train.py", "x=hf_" + SECRET],
    ],
)
def test_no_secret_of_a_command_line_is_kept(argv: list[str]) -> None:
    scrubbed = scrubbed_argv(argv)
    assert SECRET not in " ".join(scrubbed)
    assert len(scrubbed) == len(argv) and "***" in " ".join(scrubbed)


def test_what_is_no_secret_stays() -> None:
    argv = [
        "train.py",
        "--config",
        "x.yaml",
        "data.tokenizer=bert",
        "max_tokens=5",
        "model.token_dim=3",
        "--flag",
        "a=b",
    ]
    assert scrubbed_argv(argv) == argv
    assert scrubbed_argv(["train.py", "--token", "--debug", "x"]) == ["train.py", "--token", "--debug", "x"]
    assert is_secret("dbPassword") and is_secret("AWS_SECRET_ACCESS_KEY") and not is_secret("authors")


def git(folder: Path, *words: str) -> None:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, env=os.environ | who)


def test_both_files_in_a_dirty_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-b", "trunk")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    for number in range(MAX_STATUS_LINES + 1):
        (tmp_path / f"new{number}").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "--token", SECRET, "optim.lr=1"])
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    run = tmp_path / "run"
    run.mkdir()
    settings = {"model": {"hub_token": SECRET, "pad_token": None, "dim": 4}, "urls": [f"s3://k:{SECRET}@host/x"]}
    write_run_context(run, settings, ranks=RANKS, link=1)
    for path in run.iterdir():
        assert SECRET not in path.read_text()
    context = read_json(run / "run_context.json")
    assert context.keys() == {
        "timestamp_utc", "pid", "cwd", "argv", "command", "paths", "distributed", "runtime", "git"
    }  # fmt: skip
    assert context["argv"] == ["train.py", "--token", "***", "optim.lr=1"] and context["pid"] == os.getpid()
    assert context["distributed"] == {"rank": 0, "local_rank": 0, "world_size": 2}
    assert context["runtime"].keys() >= {"python", "platform", "hostname", "torch", "deepspeed", "cuda", "device"}
    found = context["git"]
    assert (found["available"], found["branch"], found["dirty"], found["error"]) == (True, "trunk", True, None)
    assert len(found["commit_hash"]) == 40 and found["commit_hash"].startswith(found["commit_short"])
    assert len(found["status_porcelain"]) == MAX_STATUS_LINES and found["status_truncated"]
    resolved = yaml.safe_load((run / "resolved_config.yaml").read_text())
    assert resolved["model"] == {"hub_token": "***", "pad_token": None, "dim": 4}


def test_a_copy_of_the_code_has_the_commit_that_was_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path)["available"] is False and "not a git repository" in git_state(tmp_path)["error"]
    record_link(tmp_path, event="submitted", link=1, commit="c" * 40, dirty=True)
    record_link(tmp_path, event="submitted", link=2, commit="d" * 40, dirty=False)
    write_run_context(tmp_path, {}, ranks=RANKS, link=1)
    found = read_json(tmp_path / "run_context.json")["git"]
    assert (found["commit_hash"], found["dirty"], found["available"]) == ("c" * 40, True, True)
