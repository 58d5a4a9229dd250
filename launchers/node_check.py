"""The part of `preflight` that runs where a link would run: a short job with the resources of the .sub file.

On SLURM it is a batch job like a link, only shorter, so what it finds holds for links. Elsewhere the same ranks are
started here. Either way they get a stop signal as a link would get it.
"""

import contextlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from core.runfiles import ENV_LOCAL_TASKS, ENV_RUNS, read_json, runs_root
from launchers.environment import ROOT
from launchers.header import Header
from launchers.machine import visible_gpus
from launchers.node_reports import Finding, judge
from launchers.slurm_commands import SlurmError, cancel_jobs, own_environment, submit
from launchers.slurm_queue import job_facts
from launchers.submission import local_tasks

START_S = 120.0  # from the job's start until every rank has met the others: imports, rendezvous, a collective
SIGNAL_S = 20.0
POLL_S = 0.3
# Of a link, not of a short check; the rest of a header says where and with what the ranks run.
NOT_OF_A_CHECK = ("job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "time", "mail-type")


def check_nodes(header: Header, *, cluster: str, wait_s: float) -> Iterator[Finding]:
    """Start the ranks, wait for their reports (`wait_s` for SLURM to start them), and judge."""
    folder = Path(tempfile.mkdtemp(dir=_runs(), prefix=".preflight_"))
    try:
        if cluster == "slurm":
            yield from _on_slurm(header, folder, wait_s=wait_s)
        else:
            yield from _here(header, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs() -> Path:
    runs_root().mkdir(parents=True, exist_ok=True)
    return runs_root()


def _command(folder: Path) -> str:
    return f"source slurm/env.sh\nsrun python -m core.train.node_probe {shlex.quote(str(folder))} {SIGNAL_S:g}\n"


def _on_slurm(header: Header, folder: Path, *, wait_s: float) -> Iterator[Finding]:
    script = folder / "check.sh"
    script.write_text(batch_script(header, folder))
    try:
        job = submit(script)
    except SlurmError as error:
        yield Finding("nodes", False, f"sbatch says: {error}")
        return
    try:
        problem = _wait_for_start(job, wait_s)
        if problem is not None:
            yield Finding("nodes", False, problem)
            return
        num_ranks = header.num_nodes * header.tasks_per_node
        reports = _wait_for_reports(folder, num_ranks, lambda: _is_over(job))
        if len(reports) == num_ranks and all(report["phase"] == "met" for report in reports):
            problem = cancel_jobs([job], options=["--signal=USR1"])
            if problem is not None:
                yield Finding("signals", False, f"scancel --signal=USR1 failed: {problem}")
            reports = _wait_for_ends(folder, num_ranks)
        yield from judge(reports, header, num_ranks=num_ranks, versions=_versions())
        if len(reports) < num_ranks:
            yield Finding("job", False, _last_words(folder / "output.txt"))
    finally:
        cancel_jobs([job], options=["--quiet"])


def batch_script(header: Header, folder: Path) -> str:
    """The check as a batch script, in the checkout."""
    options = {name: value for name, value in header.options.items() if name not in NOT_OF_A_CHECK}
    options |= {"job-name": "preflight", "time": "5", "output": str(folder / "output.txt"), "chdir": str(ROOT)}
    lines = [f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "") for name, value in options.items()]
    settings = f"export {ENV_RUNS}={shlex.quote(str(runs_root()))}\n"
    return "\n".join(["#!/bin/bash", *lines, settings + _command(folder)])


def _wait_for_start(job: str, wait_s: float) -> str | None:
    """None once the job runs (or is over already); else why it does not."""
    deadline = time.monotonic() + wait_s
    while True:
        facts = job_facts(job)
        state = (facts or {}).get("JobState", "")
        if facts is not None and state not in ("PENDING", "CONFIGURING"):
            return None
        if time.monotonic() > deadline:
            reason = (facts or {}).get("Reason", "no word from SLURM").replace("_", " ")
            return f"no node in {wait_s:.0f} s: {reason} (--wait 600 waits longer, --here leaves the nodes out)"
        time.sleep(POLL_S)


def _is_over(job: str) -> bool:
    facts = job_facts(job)
    return facts is not None and facts.get("JobState") not in ("RUNNING", "COMPLETING")


def _here(header: Header, folder: Path) -> Iterator[Finding]:
    num_ranks, notice = local_tasks(header)
    if notice:
        yield Finding("ranks", True, notice)
    gpus = ",".join(visible_gpus()[: header.gpus_per_node])
    settings = {ENV_RUNS: str(runs_root()), ENV_LOCAL_TASKS: str(num_ranks), "CUDA_VISIBLE_DEVICES": gpus}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", _command(folder)], cwd=ROOT, env={**own_environment(), **settings},
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            reports = _wait_for_reports(folder, num_ranks, lambda: process.poll() is not None)
            if len(reports) == num_ranks:
                for report in reports:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(report["pid"], signal.SIGUSR1)
                reports = _wait_for_ends(folder, num_ranks)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    is_without = header.gpus_per_node and not gpus  # said above: the ranks run on the CPU
    asked = Header(header.path, {"job-name": header.job_name}) if is_without else header
    yield from judge(reports, asked, num_ranks=num_ranks, versions=_versions())
    if len(reports) < num_ranks:
        yield Finding("job", False, _last_words(folder / "output.txt"))


def _wait_for_reports(folder: Path, num_ranks: int, is_over: Callable[[], bool]) -> list[dict[str, Any]]:
    """The reports once all ranks have met, or as they are when the job is over or the time is up."""
    deadline = time.monotonic() + START_S
    while True:
        ended = is_over()
        reports = _read(folder)
        met = [report for report in reports if report["phase"] != "started"]
        if len(met) == num_ranks or ended or time.monotonic() > deadline:
            return reports
        time.sleep(POLL_S)


def _wait_for_ends(folder: Path, num_ranks: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + SIGNAL_S
    while True:
        reports = _read(folder)
        if all(report["phase"] == "ended" for report in reports) or time.monotonic() > deadline:
            return reports
        time.sleep(POLL_S)


def _read(folder: Path) -> list[dict[str, Any]]:
    return sorted((read_json(path) for path in folder.glob("rank_*.json")), key=lambda report: report["rank"])


def _versions() -> dict[str, str]:
    """Of what the ranks report, as it is installed here."""
    names = ("torch", "numpy", "lhotse", "transformers", "deepspeed", "submitit")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _last_words(output: Path, lines: int = 5) -> str:
    """The end of what the job printed."""
    try:
        text: Sequence[str] = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        text = []
    return "its last words: " + " | ".join(text[-lines:]) if text else "it printed nothing"
