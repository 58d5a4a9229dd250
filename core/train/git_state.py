"""The repository around a folder: commit, branch, and what differs from it."""

import subprocess
from pathlib import Path
from typing import Any

from core.train.scrubbing import scrubbed

MAX_STATUS_LINES = 200
GIT_TIMEOUT_S = 10.0


def git_state(folder: Path) -> dict[str, Any]:
    """Commit, branch and changes of the repository around a folder; `error` says why there is none."""
    try:
        root = _ask_git(folder, "rev-parse", "--show-toplevel")
        commit = _ask_git(folder, "rev-parse", "HEAD")
        branch = _ask_git(folder, "rev-parse", "--abbrev-ref", "HEAD")
        status = _ask_git(folder, "status", "--porcelain").splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stderr", None) or str(error)).strip()
        return all_facts(available=False, error=scrubbed(words))
    return all_facts(
        available=True,
        repo_root=root,
        commit_hash=commit,
        commit_short=commit[:7],
        branch=branch,
        dirty=bool(status),
        status_porcelain=status[:MAX_STATUS_LINES],
        status_truncated=len(status) > MAX_STATUS_LINES,
    )


def all_facts(**facts: Any) -> dict[str, Any]:
    """All keys, whatever is known."""
    nothing = dict.fromkeys(("repo_root", "commit_hash", "commit_short", "branch", "dirty"))
    return {"available": False, **nothing, "status_porcelain": [], "status_truncated": False, "error": None, **facts}


def _ask_git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    run = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
    return run.stdout.rstrip()
