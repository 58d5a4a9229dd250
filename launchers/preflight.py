"""`preflight`: would this .sub file work here? Checks that cost seconds, before a job that costs days."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from core.runfiles import ExitCode, runs_root
from launchers.environment import ROOT, missing
from launchers.header import Header, HeaderError, read_header
from launchers.machine import num_cores, slurm_answers, visible_gpus
from launchers.tables import console, table

CHECK_TIMEOUT_S = 60.0
LEAST_FREE_GIB = 5.0

Finding = tuple[str, bool, str]  # what, whether it is well, in words


def preflight(sub: Path, *, overrides: list[str]) -> int:
    """Print one row a check; 0 if all is well."""
    findings: list[Finding] = []
    header: Header | None = None
    try:
        header = read_header(sub)
        findings.append(("header", True, f"{header.job_name}: {_resources(header)}"))
    except FileNotFoundError:
        findings.append(("header", False, f"no such file: {sub}"))
    except HeaderError as error:
        findings += [("header", False, problem) for problem in error.problems]
    for check in (_python, _packages, _disk, _device, _cluster):
        findings += check()
    if header is not None:
        findings += _config(header, overrides)
    shown = table("check", "", "finding")
    for what, is_well, words in findings:
        shown.add_row(what, "[green]ok[/]" if is_well else "[red]NO[/]", words.replace("[", "\\["))
    console().print(shown)
    return int(ExitCode.DONE if all(is_well for _, is_well, _ in findings) else ExitCode.CONFIG)


def _resources(header: Header) -> str:
    limit = header.options.get("time", "no limit")
    gpus = f", {header.gpus_per_node} GPUs a node" if header.gpus_per_node else ""
    return f"{header.num_nodes} x {header.tasks_per_node} ranks{gpus}, time {limit}"


def _python() -> Iterator[Finding]:
    yield "python", True, f"{sys.version.split()[0]} in {sys.prefix}"


def _packages() -> Iterator[Finding]:
    lacking = missing()
    yield "packages", not lacking, ", ".join(lacking) if lacking else "all there, in the ranges of pyproject.toml"


def _disk() -> Iterator[Finding]:
    root = runs_root()
    nearest = next(path for path in (root, *root.parents) if path.exists())
    free_gib = shutil.disk_usage(nearest).free / 2**30
    yield "runs", os.access(nearest, os.W_OK), f"{root}{'' if root == nearest else ' (will be made)'}"
    yield "disk", free_gib >= LEAST_FREE_GIB, f"{free_gib:.0f} GiB free (at least {LEAST_FREE_GIB:.0f} wanted)"


def _device() -> Iterator[Finding]:
    """What torch sees, asked in a process of its own: the launcher never imports it."""
    program = "import torch; print(torch.__version__, torch.cuda.device_count())"
    answer = _run([sys.executable, "-c", program])
    if answer.returncode != 0:
        yield "torch", False, _last_line(answer)
        return
    version, count = answer.stdout.split()
    driver = len(visible_gpus())
    words = f"{version} sees {count} GPUs"
    if driver and count == "0":
        words += f", the driver has {driver}: this is a CPU build (rm -rf .venv and start again)"
    yield "torch", count != "0" or not driver, words


def _cluster() -> Iterator[Finding]:
    if slurm_answers():
        yield "cluster", True, "SLURM answers"
    else:
        yield "cluster", True, f"no SLURM answers: links would run here, on {num_cores()} cores"


def _config(header: Header, overrides: list[str]) -> Iterator[Finding]:
    """The .sub's own command with `--check`: it prints the resolved config and exits before it loads anything."""
    syntax = _run(["bash", "-n", str(header.path)])
    if syntax.returncode != 0:
        yield "script", False, _last_line(syntax)
        return
    if "python -m recipes." not in header.path.read_text(encoding="utf-8"):
        yield "config", True, "not checked: the file runs no recipe"
        return
    here = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    here["BATON_LOCAL_TASKS"] = "1"
    arguments = [f"run.name={header.job_name}", "--check", *overrides]
    answer = _run(["bash", str(header.path.absolute()), *arguments], env=here)
    if answer.returncode == 0:
        yield "config", True, "resolved without a mistake"
        return
    for line in (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-20:]:
        yield "config", False, line


def _run(command: list[str], *, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, cwd=ROOT, env=env)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {CHECK_TIMEOUT_S:.0f} s")


def _last_line(answer: "subprocess.CompletedProcess[str]") -> str:
    lines = answer.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {answer.returncode}"
