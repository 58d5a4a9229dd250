"""The part of `preflight` that runs where a link would run: a short job with the resources of the .sub file.

On SLURM it is a batch job like a link, only shorter, so what it finds holds for links. Elsewhere the same ranks are
started here. Either way they are started as the .sub file starts its program, and get a stop signal as a link would.
"""

import contextlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from core.rundir.environment import ENV_LOCAL_TASKS, ENV_RUNS, runs_root
from core.rundir.whole_files import read_json, write_json
from launchers.chain.submission import local_tasks
from launchers.here.environment import ROOT
from launchers.here.machine import visible_gpus
from launchers.slurm.commands import SlurmError, cancel_jobs, own_environment, submit
from launchers.slurm.header import Header
from launchers.slurm.node_reports import LISTENED_TO, PreflightFinding, judge, signal_name
from launchers.slurm.queue import job_facts

START_S = 120.0  # from the job's start until every rank has met the others: imports, rendezvous, a collective
SIGNAL_S = 15.0  # from the signal, once SLURM has taken it, until every rank has told of it
LISTEN_S = 150.0  # until a rank gives up by itself: SLURM may take its time to hand the signal on
POLL_S = 0.3
ASKED, SCRIPT, OUTPUT = "asked.json", "check.sh", "output.txt"
PACKAGES = ("torch", "numpy", "lhotse", "transformers", "deepspeed", "submitit")
# Of a link, not of a short check; the rest of a header says where and with what the ranks run.
NOT_OF_A_CHECK = ("job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "time", "mail-type")
# Of a .sub file: how it starts its program, and the plain commands that may matter to that.
START = re.compile(r"\s*srun\s+(.*?\S*python[\d.]*)\s+-m\s")
SETUP = re.compile(r"(export|module|source|\.|trap|ulimit|umask|unset)\s|\w+=")


def check_nodes(
    header: Header, paths: Mapping[str, str], *, cluster: str, wait_s: float, precision: str = "fp32"
) -> Iterator[PreflightFinding]:
    """Start the ranks, wait for their reports (`wait_s` for SLURM to start them), and judge.

    `paths`: what must be there on every node, by the key that names it; relative ones from the checkout.
    `precision`: what kernels must compute in, as `parallel.precision` says.
    """
    try:
        runs_root().mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=runs_root(), prefix=".preflight_"))
    except OSError as error:
        yield _unwritable(error)
        return
    try:
        absolute = {f"{key}: {path}": str(ROOT / path) for key, path in paths.items()}
        write_json(folder / ASKED, {"packages": PACKAGES, "paths": absolute, "precision": precision})
        (folder / SCRIPT).write_text(batch_script(header, folder))
        yield from _on_slurm(header, folder, wait_s=wait_s) if cluster == "slurm" else _here(header, folder)
    except OSError as error:
        yield _unwritable(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unwritable(error: OSError) -> PreflightFinding:
    return PreflightFinding("nodes", False, f"not checked, as {runs_root()} cannot be written: {error.strerror}")


def start_commands(header: Header, folder: Path) -> str:
    """Start the probe as the .sub file starts its last program: with the same setup, srun options and wrappers."""
    setup, how = [], "python"
    before: list[str] = []
    for line in header.path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        start = START.match(line)
        if start and _is_whole(start[1]):
            setup, how = list(before), start[1]
        elif SETUP.match(line) and _is_whole(line):
            before.append(line)
    if not any("slurm/env.sh" in line for line in setup):
        setup.insert(0, "source slurm/env.sh")
    probe = f"srun --kill-on-bad-exit=1 {how} -m core.job.node_probe {shlex.quote(str(folder))} {LISTEN_S:g}"
    return "\n".join([*setup, probe, ""])


def _is_whole(words: str) -> bool:
    """Tell whether no quote is left open."""
    try:
        return bool(shlex.split(words))
    except ValueError:
        return False


def _on_slurm(header: Header, folder: Path, *, wait_s: float) -> Iterator[PreflightFinding]:
    try:
        job = submit(folder / SCRIPT)
    except SlurmError as error:
        yield PreflightFinding("nodes", False, f"sbatch says: {error}")
        return
    try:
        problem = _wait_for_start(job, wait_s)
        if problem is not None:
            yield PreflightFinding("nodes", False, problem)
            return
        num_ranks = header.num_nodes * header.tasks_per_node
        reports = _wait_for_reports(folder, num_ranks, lambda: _is_over(job))
        if len(reports) == num_ranks and all(report["phase"] == "met" for report in reports):
            problem = cancel_jobs([job], options=[f"--signal={_notice(header).removeprefix('SIG')}"])
            if problem is not None:
                yield PreflightFinding("signals", False, f"scancel --signal failed: {problem}")
            reports = _wait_for_ends(folder, num_ranks)
        yield from judge(reports, header, num_ranks=num_ranks, versions=_versions())
        if len(reports) < num_ranks:
            yield PreflightFinding("job", False, _last_words(folder / OUTPUT))
    finally:
        cancel_jobs([job], options=["--quiet"])


def _notice(header: Header) -> str:
    """Return the signal that a link gets before its end, as far as its ranks listen to it."""
    name = signal_name(header.options.get("signal", "").rpartition(":")[2].partition("@")[0])
    return name if name in LISTENED_TO else "SIGUSR1"


def batch_script(header: Header, folder: Path) -> str:
    """Return the check as a batch script, in the checkout."""
    options = {name: value for name, value in header.options.items() if name not in NOT_OF_A_CHECK}
    options |= {"job-name": "preflight", "time": "5", "output": str(folder / OUTPUT), "chdir": str(ROOT)}
    lines = [f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "") for name, value in options.items()]
    settings = f"export {ENV_RUNS}={shlex.quote(str(runs_root()))}\n"
    return "\n".join(["#!/bin/bash", *lines, settings + start_commands(header, folder)])


def _wait_for_start(job: str, wait_s: float) -> str | None:
    """Wait until the job runs (or is over already); return why it does not, else None."""
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


def _here(header: Header, folder: Path) -> Iterator[PreflightFinding]:
    num_ranks, notice = local_tasks(header)
    if notice:
        yield PreflightFinding("ranks", True, notice)
    gpus = ",".join(visible_gpus()[: header.gpus_per_node])
    settings = {ENV_RUNS: str(runs_root()), ENV_LOCAL_TASKS: str(num_ranks), "CUDA_VISIBLE_DEVICES": gpus}
    with (folder / OUTPUT).open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", start_commands(header, folder)], cwd=ROOT, env={**own_environment(), **settings},
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            reports = _wait_for_reports(folder, num_ranks, lambda: process.poll() is not None)
            if len(reports) == num_ranks:
                for report in reports:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(report["pid"], signal.Signals[_notice(header)])
                reports = _wait_for_ends(folder, num_ranks)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    is_without = header.gpus_per_node and not gpus  # said above: the ranks run on the CPU
    asked = Header(header.path, {"job-name": header.job_name}) if is_without else header
    yield from judge(reports, asked, num_ranks=num_ranks, versions=_versions())
    if len(reports) < num_ranks:
        yield PreflightFinding("job", False, _last_words(folder / OUTPUT))


def _wait_for_reports(folder: Path, num_ranks: int, is_over: Callable[[], bool]) -> list[dict[str, Any]]:
    """Return the reports once all ranks have met, or as they are when the job is over or the time is up."""
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
    """Return the versions of what the ranks report, as it is installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _last_words(output: Path, lines: int = 5) -> str:
    """Return the end of what the job printed."""
    try:
        text: Sequence[str] = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except FileNotFoundError:
        where = output.parent.parent
        return f"its node could not write to {where}; runs must be where all nodes see them: BATON_RUNS names the place"
    own = [line for line in text if not line.startswith(("srun: ", "slurmstepd: "))]
    return "its last words: " + " | ".join((own or text)[-lines:]) if text else "it printed nothing"
