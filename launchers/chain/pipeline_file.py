"""pipeline.yaml: runs that follow one another, each when the one before is done.

name: hubert
settings: ["run.device=cpu"]           # of every stage; what a stage sets itself comes after them
stages:
  - sub: labels.sub                      # relative to this file
  - sub: train.sub
    links: 8                             # default 1
    name: iteration1                     # default: the job name of the .sub file
    settings: ["data.labels={labels}"]   # {labels} is the run directory of the stage of that name
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.rundir.environment import runs_root
from launchers.chain.request import OVERRIDE
from launchers.runs import LaunchError
from launchers.slurm.header import NAME, Header, HeaderError, read_header

KEYS = {"sub": str, "links": int, "name": str, "settings": object}


@dataclass(frozen=True)
class Stage:
    """One run of a pipeline."""

    name: str
    run: str
    header: Header
    num_links: int = 1
    settings: list[str] = field(default_factory=list)


def read_pipeline(path: Path) -> tuple[str, list[Stage]]:
    """Return (name, stages) of a pipeline. LaunchError with all that is wrong in it."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LaunchError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LaunchError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), list) or not content["stages"]:
        raise LaunchError(f"{path}: expected a name and a list of stages; see launchers/chain/pipeline_file.py")
    problems = [f"{path}: {key}: unknown key" for key in content if key not in ("name", "settings", "stages")]
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(f"{path}: name: {name!r}: only letters, digits and . _ - (64 at most)")
    common = content.get("settings", [])
    problems += _check_settings(common, where=f"{path}: settings")
    stages: list[Stage] = []
    for number, entry in enumerate(content["stages"]):
        found = _check(entry, where=f"{path}: stages[{number}]")
        if found:
            problems += found
            continue
        stage, found = _stage(entry, path, f"{path}: stages[{number}]", pipeline=str(name))
        problems += found
        if stage is not None:
            if stage.name in (one.name for one in stages):
                problems.append(f"{path}: stages[{number}]: there is a stage {stage.name} already; give it a name")
            stages.append(stage)
    if problems:
        raise LaunchError("\n".join(problems))
    stages = [replace(stage, settings=[*common, *stage.settings]) for stage in stages]
    return name, [replace(stage, settings=_filled(stage, stages, path)) for stage in stages]


def _check(entry: Any, *, where: str) -> list[str]:
    """Return what is wrong with the keys and types of a stage."""
    if not isinstance(entry, dict):
        return [f"{where}: expected keys such as sub and links, got {entry!r}"]
    problems = []
    for key, value in entry.items():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            problems.append(f"{where}.{key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        elif not isinstance(value, KEYS[key]) or isinstance(value, bool):
            problems.append(f"{where}.{key}: got {value!r}, expected {KEYS[key].__name__}")
    if "sub" not in entry:
        problems.append(f"{where}: sub is missing")
    if isinstance(entry.get("links"), int) and entry["links"] < 1:
        problems.append(f"{where}.links: got {entry['links']}, expected at least 1")
    return [*problems, *_check_settings(entry.get("settings", []), where=f"{where}.settings")]


def _check_settings(settings: Any, *, where: str) -> list[str]:
    if not isinstance(settings, list):
        return [f"{where}: got {settings!r}, expected a list of key=value"]
    bad = [word for word in settings if not isinstance(word, str) or not OVERRIDE.fullmatch(word)]
    return [f"{where}: {word!r}: expected key=value" for word in bad]


def _stage(entry: dict[str, Any], path: Path, where: str, *, pipeline: str) -> tuple[Stage | None, list[str]]:
    sub = path.parent / entry["sub"]
    try:
        header = read_header(sub)
    except OSError as error:
        return None, [f"{where}.sub: {sub}: {error.strerror}"]
    except HeaderError as error:
        return None, error.problems
    name = entry.get("name", header.job_name)
    run = f"{pipeline}.{name}"
    if not NAME.fullmatch(run):
        return None, [f"{where}.name: {run!r}: only letters, digits and . _ - (64 at most)"]
    header = replace(header, path=sub.absolute())
    return Stage(name, run, header, entry.get("links", 1), entry.get("settings", [])), []


def _filled(stage: Stage, stages: Sequence[Stage], path: Path) -> list[str]:
    """Return the settings with the run directories of the stages before put in for their names."""
    settings = list(stage.settings)
    for other in stages:
        mark = "{" + other.name + "}"
        if other is stage or stages.index(other) > stages.index(stage):
            for word in settings:
                if mark in word:
                    raise LaunchError(f"{path}: stage {stage.name}: {word}: {mark} is not a stage before this one")
        settings = [word.replace(mark, str(runs_root() / other.run)) for word in settings]
    return settings
