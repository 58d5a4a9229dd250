"""sweep.json: which runs a sweep consists of. It lies in a directory of the sweep's own, beside those of its runs."""

from pathlib import Path
from typing import Any

from core.rundir.environment import runs_root
from core.rundir.files import SWEEP
from core.rundir.whole_files import read_json, write_json
from launchers.runs import valid_name


def sweep_directory(name: str) -> Path:
    return runs_root() / valid_name(name)


def read_sweep(name: str) -> dict[str, Any] | None:
    """Return `sub`, its file, and `runs`, name and settings of each. None where there is no such sweep."""
    path = sweep_directory(name) / SWEEP
    return read_json(path) if path.exists() else None


def write_sweep(name: str, content: dict[str, Any]) -> None:
    sweep_directory(name).mkdir(parents=True, exist_ok=True)
    write_json(sweep_directory(name) / SWEEP, content)


def sweep_runs(name: str) -> list[Path]:
    """Return the directories of a sweep's runs that have begun; empty where there is no such sweep."""
    sweep = read_sweep(name)
    found = [runs_root() / valid_name(one["run"]) for one in sweep["runs"]] if sweep else []
    return [run for run in found if run.is_dir()]
