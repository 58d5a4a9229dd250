"""sweep.json: which runs a sweep consists of. It lies in a directory of the sweep's own, beside those of its runs."""

from pathlib import Path
from typing import Any

from core.rundir.files import read_json, runs_root, write_json
from launchers.runs import checked

SWEEP = "sweep.json"


def directory_of(name: str) -> Path:
    return runs_root() / checked(name)


def read_sweep(name: str) -> dict[str, Any] | None:
    """`sub`: its file; `runs`: name and settings of each. None where there is no such sweep."""
    path = directory_of(name) / SWEEP
    return read_json(path) if path.exists() else None


def write_sweep(name: str, content: dict[str, Any]) -> None:
    directory_of(name).mkdir(parents=True, exist_ok=True)
    write_json(directory_of(name) / SWEEP, content)


def members(name: str) -> list[Path]:
    """The directories of a sweep's runs that have begun; empty where there is no such sweep."""
    sweep = read_sweep(name)
    found = [runs_root() / checked(one["run"]) for one in sweep["runs"]] if sweep else []
    return [run for run in found if run.is_dir()]
