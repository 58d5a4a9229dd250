"""What git knows of the code that a run executes, and nothing where there is no git or no repository."""

import subprocess
from pathlib import Path
from typing import Any

MAX_STATUS_LINES = 200
TIMEOUT_S = 10.0


def ask_git(folder: Path, *words: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return what a git command prints in a folder. OSError or SubprocessError where it fails."""
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True).stdout.rstrip()


def code_version(folder: Path) -> tuple[str | None, bool | None]:
    """Return (commit, whether a tracked file was changed); None for what git does not tell."""
    changes = _ask_or_none(folder, "status", "--porcelain", "--untracked-files=no")
    return _ask_or_none(folder, "rev-parse", "HEAD") or None, None if changes is None else bool(changes)


def _ask_or_none(folder: Path, *words: str) -> str | None:
    try:
        return ask_git(folder, *words)
    except (OSError, subprocess.SubprocessError):
        return None


def git_state(folder: Path) -> dict[str, Any]:
    """Return commit, branch and changes of the repository around a folder; `error` says why there is none."""
    try:
        root = ask_git(folder, "rev-parse", "--show-toplevel")
        commit = ask_git(folder, "rev-parse", "HEAD")
        branch = ask_git(folder, "rev-parse", "--abbrev-ref", "HEAD")
        status = ask_git(folder, "status", "--porcelain").splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return git_facts(available=False, error=(getattr(error, "stderr", None) or str(error)).strip())
    return git_facts(
        available=True,
        repo_root=root,
        commit_hash=commit,
        commit_short=commit[:7],
        branch=branch,
        dirty=bool(status),
        status_porcelain=status[:MAX_STATUS_LINES],
        status_truncated=len(status) > MAX_STATUS_LINES,
    )


def git_facts(**facts: Any) -> dict[str, Any]:
    """Return all keys of `git_state`, whatever is known."""
    nothing = dict.fromkeys(("repo_root", "commit_hash", "commit_short", "branch", "dirty"))
    return {"available": False, **nothing, "status_porcelain": [], "status_truncated": False, "error": None, **facts}
