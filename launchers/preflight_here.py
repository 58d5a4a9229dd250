"""The checks of `preflight` that need no node: environment, disk, the .sub file, its configuration, its paths."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from core.runfiles import runs_root
from launchers.environment import ROOT, missing
from launchers.header import Header
from launchers.machine import visible_gpus
from launchers.node_reports import LEAST_FREE_GIB, Finding

TIMEOUT_S = 120.0
PATTERN = re.compile(r"[*?{]|://")  # many files, or not a file of this machine


def python() -> Iterator[Finding]:
    yield Finding("python", True, f"{sys.version.split()[0]} in {sys.prefix}")


def packages() -> Iterator[Finding]:
    lacking = missing()
    yield Finding("packages", not lacking, ", ".join(lacking) or "all there, in the ranges of pyproject.toml")


def disk() -> Iterator[Finding]:
    """Room for runs, found out by writing."""
    root = runs_root()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    is_writable = os.access(nearest, os.W_OK) and nearest.is_dir()
    words = f"{root}{'' if root == nearest else ' (will be made)'}"
    yield Finding("runs", is_writable, words if is_writable else f"{words}: {nearest} cannot be written")
    free_gib = shutil.disk_usage(nearest).free / 2**30
    yield Finding("disk", free_gib >= LEAST_FREE_GIB, f"{free_gib:.0f} GiB free (at least {LEAST_FREE_GIB:.0f} wanted)")


def device() -> Iterator[Finding]:
    """What torch sees, asked in a process of its own: the launcher never imports it."""
    program = "import torch; print(torch.__version__, torch.cuda.device_count())"
    answer = _run([sys.executable, "-c", program])
    if answer.returncode != 0:
        yield Finding("torch", False, _last_line(answer))
        return
    version, count = answer.stdout.split()
    driver = len(visible_gpus())
    words = f"{version} sees {count} GPUs here"
    if driver and count == "0":
        words += f", the driver has {driver}: this is a CPU build (rm -rf .venv and start again)"
    yield Finding("torch", count != "0" or not driver, words)


def script(header: Header) -> Iterator[Finding]:
    """What can be said of the .sub file without running it."""
    text = header.path.read_text(encoding="utf-8")
    syntax = _run(["bash", "-n", str(header.path.absolute())])
    if syntax.returncode != 0:
        yield Finding("script", False, _last_line(syntax))
    elif header.num_nodes * header.tasks_per_node > 1 and not re.search(r"^\s*srun\s", text, re.MULTILINE):
        yield Finding("script", False, "it asks for several ranks, but has no srun: one would be started")
    elif late := _late_options(text):
        yield Finding("script", False, f"line {late}: sbatch ignores #SBATCH lines after the first command")
    else:
        yield Finding("script", True, f"{header.path.name} reads well")
    notice = header.options.get("signal", "")
    if re.match(r"R?B", notice.partition(":")[0]) and ":" in notice:
        yield Finding("notice", False, f"--signal={notice}: B: gives the signal to the shell only; no rank would save")
    elif not notice:
        yield Finding("notice", True, "no --signal: a link stops by its own clock; with USR1@120 also when preempted")
    else:
        yield Finding("notice", True, f"--signal={notice}")


def _late_options(text: str) -> int | None:
    """The number of the first #SBATCH line that stands too late to count."""
    has_begun = False
    for number, line in enumerate(text.splitlines(), start=1):
        has_begun = has_begun or bool(line.strip() and not line.lstrip().startswith("#"))
        if has_begun and line.startswith("#SBATCH"):
            return number
    return None


def config(header: Header, overrides: list[str]) -> Iterator[Finding]:
    """The .sub's own command with `--check`: it prints the resolved config and exits before it loads anything."""
    if "python -m recipes." not in header.path.read_text(encoding="utf-8"):
        yield Finding("config", True, "not checked: the file runs no recipe")
        return
    here = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    here["BATON_LOCAL_TASKS"] = "1"
    arguments = [f"run.name={header.job_name}", "--check", *overrides]
    answer = _run(["bash", str(header.path.absolute()), *arguments], env=here)
    if answer.returncode != 0:
        for line in (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-20:]:
            yield Finding("config", False, line)
        return
    yield Finding("config", True, "resolved without a mistake")
    yield from paths(answer.stdout)


def paths(resolved: str) -> Iterator[Finding]:
    """Whether what the `data` section of a resolved config names is there."""
    import yaml

    found = yaml.safe_load(resolved)
    named = list(_paths(found.get("data") if isinstance(found, dict) else None, "data"))
    absent = [(key, path) for key, path in named if not (ROOT / path).exists()]
    for key, path in absent:
        yield Finding("paths", False, f"{key}: there is no {path}")
    if not absent:
        yield Finding("paths", True, f"all {len(named)} that the data section names are there")


def _paths(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, path) of every string below `value` that can only be a path."""
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
