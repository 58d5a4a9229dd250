"""Which code a link runs: the commit, and whether the checkout differs from it."""

import subprocess
from pathlib import Path

GIT_TIMEOUT_S = 10.0


def code_version(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty); None where there is no git or no repository."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return (commit or None), (None if changes is None else bool(changes))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
