"""The checks of `preflight` that need no node: this machine, the .sub file, its configuration, its paths."""

import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from core.rundir.environment import ENV_LOCAL_TASKS
from launchers.here import check
from launchers.here.check import TIMEOUT_S
from launchers.here.environment import ROOT
from launchers.slurm.header import Header
from launchers.slurm.node_reports import LISTENED_TO, PreflightFinding, signal_name

PATTERN = re.compile(r"[*?{]|://")  # many files, or not a file of this machine


def machine() -> Iterator[PreflightFinding]:
    """Check this machine as `./run.sh check` does, without packages that are well. Jobs have GPUs of their own."""
    wrong = [one for one in check.packages() if one.state == "fail"]
    for one in (*check.python(), *wrong, *check.disk(), *check.devices()):
        is_well = one.state == "ok" or (one.state, one.what) == ("warn", "gpu")
        yield PreflightFinding(one.what, is_well, one.words if is_well else f"{one.words}: {one.advice}")
    if not wrong:
        yield PreflightFinding("packages", True, "all there, in the ranges of pyproject.toml")


def script(header: Header) -> Iterator[PreflightFinding]:
    """Check what can be said of the .sub file without running it."""
    text = header.path.read_text(encoding="utf-8")
    syntax = _run(["bash", "-n", str(header.path.absolute())])
    if syntax.returncode != 0:
        yield PreflightFinding("script", False, _last_line(syntax))
    elif header.num_nodes * header.tasks_per_node > 1 and not re.search(r"^\s*srun\s", text, re.MULTILINE):
        yield PreflightFinding("script", False, "it asks for several ranks, but has no srun: one would be started")
    elif late := _late_options(text):
        yield PreflightFinding("script", False, f"line {late}: sbatch ignores #SBATCH lines after the first command")
    else:
        yield PreflightFinding("script", True, f"{header.path.name} reads well")
    yield _notice(header.options.get("signal", ""))


def _notice(option: str) -> PreflightFinding:
    """Check what `--signal=[R|B:]SIGNAL[@SECONDS]` means for the ranks."""
    if not option:
        return PreflightFinding(
            "notice", True, "no --signal: a link stops by its own clock; with USR1@120 also when preempted"
        )
    to, _, rest = option.rpartition(":")
    if "B" in to:
        return PreflightFinding(
            "notice", False, f"--signal={option}: B: gives the signal to the shell only; no rank would save"
        )
    if signal_name(rest.partition("@")[0]) not in LISTENED_TO:
        return PreflightFinding("notice", False, f"--signal={option}: no rank listens to that; use USR1@120")
    return PreflightFinding("notice", True, f"--signal={option}")


def _late_options(text: str) -> int | None:
    """Return the number of the first #SBATCH line that stands too late to count."""
    has_begun = False
    for number, line in enumerate(text.splitlines(), start=1):
        has_begun = has_begun or bool(line.strip() and not line.lstrip().startswith("#"))
        if has_begun and line.startswith("#SBATCH"):
            return number
    return None


def config(header: Header, overrides: list[str]) -> tuple[list[PreflightFinding], dict[str, str], str]:
    """Check the config by the .sub's own command with `--check`, which prints what it resolves to and loads nothing.

    Return the findings, the paths that its `data` section names, by their keys, and its `parallel.precision`.
    """
    if "python -m recipes." not in header.path.read_text(encoding="utf-8"):
        return [PreflightFinding("config", True, "not checked: the file runs no recipe")], {}, "fp32"
    here = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    here[ENV_LOCAL_TASKS] = "1"
    arguments = [f"run.name={header.job_name}", "--check", *overrides]
    answer = _run(["bash", str(header.path.absolute()), *arguments], env=here)
    if answer.returncode != 0:
        lines = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-20:]
        return [PreflightFinding("config", False, line) for line in lines], {}, "fp32"
    named = paths(answer.stdout)
    absent = [
        PreflightFinding("paths", False, f"{key}: there is no {path}")
        for key, path in named.items()
        if not is_there(path)
    ]
    all_there = PreflightFinding("paths", True, f"all {len(named)} that the data section names are there")
    return (
        [PreflightFinding("config", True, "resolved without a mistake"), *(absent or [all_there])],
        named,
        precision(answer.stdout),
    )


def paths(resolved: str) -> dict[str, str]:
    """Return the paths that the `data` section of a resolved config names, by their keys."""
    import yaml

    found = yaml.safe_load(resolved)
    return dict(_paths(found.get("data") if isinstance(found, dict) else None, "data"))


def precision(resolved: str) -> str:
    """Return what a resolved config trains in."""
    import yaml

    found = yaml.safe_load(resolved)
    parallel = found.get("parallel") if isinstance(found, dict) else None
    return str((parallel or {}).get("precision", "fp32"))


def is_there(path: str) -> bool:
    return (ROOT / path).exists()


def _paths(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield (key, path) of every string below `value` that can only be a path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _paths(inner, f"{key}[{number}]")
    elif isinstance(value, str) and "/" in value and not PATTERN.search(value):
        yield key, value


def _run(command: list[str], *, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=ROOT, env=env)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {TIMEOUT_S:.0f} s")


def _last_line(answer: "subprocess.CompletedProcess[str]") -> str:
    lines = answer.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {answer.returncode}"
