"""Run names: what is allowed, and which run was meant."""

import difflib
from pathlib import Path

from core.rundir.environment import runs_root
from core.rundir.exit_codes import ExitCode
from core.rundir.files import LEDGER, METRICS
from launchers.slurm.header import NAME


class LaunchError(Exception):
    """The launcher refuses: what a person must change, and the exit code that says of which kind it is."""

    def __init__(self, message: str, *, exit_code: int = ExitCode.CONFIG) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)


def valid_name(name: str) -> str:
    """Return the name itself. LaunchError unless it is safe as a directory and job name."""
    if not NAME.fullmatch(name) or set(name) == {"."}:
        raise LaunchError(f"run name {name!r}: only letters, digits and . _ - are allowed (at most 64)")
    return name


def existing_runs() -> list[Path]:
    root = runs_root()
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if (path / LEDGER).exists() or (path / METRICS).exists())


def find_run(name: str) -> Path:
    """Return the directory of a run. LaunchError with the nearest names if there is none."""
    run = runs_root() / valid_name(name)
    names = [path.name for path in existing_runs()]
    if run.name in names:
        return run
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if near:
        raise LaunchError(f"no run {name!r} in {runs_root()}; did you mean {' or '.join(near)}?")
    raise LaunchError(
        f"no run {name!r} in {runs_root()}; there {'are others, see: status' if names else 'is no run yet'}"
    )
