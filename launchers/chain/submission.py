"""One link as a submitit job: what is executed, and by which executor.

The job is `env BATON_LINK=.. bash FILE.sub run.name=NAME key=value ..` as a list of arguments: no value of a person
ever becomes shell text. It runs through `subprocess.run`, so that its output goes straight to the job's log.
"""

import hashlib
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from submitit.local.debug import DebugExecutor, DebugJob
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor, SlurmJob, _make_sbatch_string

from core.rundir.environment import ENV_GATE, ENV_LINK, ENV_LINK_SEED, ENV_LOCAL_TASKS, ENV_RUNS
from core.rundir.files import LOGS
from core.rundir.ledger import link_logs
from launchers.here.environment import ROOT
from launchers.here.machine import num_cores, visible_gpus
from launchers.slurm.commands import submit
from launchers.slurm.header import Header

Cluster = Literal["slurm", "local", "debug"]


@dataclass(frozen=True)
class LaunchedRun:
    """What all links of one launch have in common."""

    directory: Path
    header: Header
    overrides: list[str]  # key=value
    seed_base: int | str  # the run's seed, or its name where the recipe keeps its own default
    cluster: Cluster
    code: Path = ROOT  # where links run: a snapshot, or the checkout itself
    gate: str | None = None  # the run that must be done before this one begins

    def seed(self, link: int) -> int:
        return link_seed(self.seed_base, link)

    def arguments(self) -> list[str]:
        """Return what the .sub file gets as "$@"."""
        return [f"run.name={self.directory.name}", *self.overrides]

    def command(self, link: int) -> list[str]:
        """Return the command of a link with its environment, as a list of words."""
        environment: dict[str, str] = {
            ENV_RUNS: str(self.directory.parent),
            ENV_LINK: str(link),
            ENV_LINK_SEED: str(self.seed(link)),
        }
        if self.cluster != "slurm":
            environment["PYTHONPATH"] = self.python_path
            environment[ENV_LOCAL_TASKS] = str(local_tasks(self.header)[0])
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus()[: self.header.gpus_per_node])
        if self.cluster == "slurm" and self.gate is not None:
            environment[ENV_GATE] = self.gate
        settings = [f"{name}={value}" for name, value in environment.items()]
        start = ["bash", str(self.script), *self.arguments()]
        if self.cluster == "slurm":
            start = [sys.executable, "-P", "-m", "launchers.slurm.link", self.directory.name, *start]
        return ["env", *settings, *start]

    @property
    def script(self) -> Path:
        """The .sub file that is run: of the snapshot, so that a later change of the original does not matter."""
        path = self.header.path
        if self.code == ROOT:
            return path
        return self.code / path.relative_to(ROOT) if path.is_relative_to(ROOT) else self.directory / LOGS / path.name

    @property
    def python_path(self) -> str:
        """The code first, and nothing of the checkout where that is a copy."""
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        return os.pathsep.join([str(self.code), *(path for path in given if path and Path(path) != ROOT)])

    def log_folder(self, link: int) -> Path:
        """Return the folder of what a link prints."""
        return link_logs(self.directory, link)

    def call(self, link: int) -> tuple[Any, dict[str, Any]]:
        """Return arguments for an executor's `submit`: SLURM should see the exit code, elsewhere it is the result."""
        start = run_and_exit if self.cluster == "slurm" else subprocess.run
        return (start, self.command(link)), {"cwd": str(self.code)}


def run_and_exit(command: list[str], *, cwd: str) -> None:
    """Run a command and leave with its exit code (as a shell says it); no traceback in the log for a planned stop."""
    code = subprocess.run(command, cwd=cwd).returncode
    raise SystemExit(128 - code if code < 0 else code)


def local_tasks(header: Header) -> tuple[int, str]:
    """Return how many ranks of a job this machine can hold, and, where that is fewer than asked for, why in words."""
    wanted = header.num_nodes * header.tasks_per_node
    num_gpus = len(visible_gpus())
    if header.gpus_per_node and num_gpus:
        room, what = num_gpus, "GPU"
    else:
        room, what = num_cores(), "core"
    if wanted <= room:
        lost = header.gpus_per_node and not num_gpus
        return wanted, "no GPU here: the ranks run on the CPU" if lost else ""
    plural = "" if room == 1 else "s"
    return room, f"{header.path.name} asks for {wanted} ranks; this machine has {room} {what}{plural}: {room} started"


class DetachedLocalExecutor(LocalExecutor):
    """submitit's local executor with each job in a session of its own.

    Ctrl-C at the terminal then reaches the launcher alone, which asks the job to save. submitit would kill the
    job's shell and leave its ranks behind; for the same reason its own time limit is out of reach (a century).
    """

    def _submit_command(self, command: str) -> LocalJob[Any]:
        environment = {
            **os.environ,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(100 * 365 * 86400),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_LOG_LEVEL": "ERROR",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
        }
        controller = [sys.executable, "-m", "submitit.local._local", str(self.folder)]
        process = subprocess.Popen(controller, env=environment, start_new_session=True, stdin=subprocess.DEVNULL)
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=[0])


class BatchExecutor(SlurmExecutor):
    """submitit's SLURM executor for a job that is one script, however many tasks its own `srun` starts.

    sbatch is asked by `launchers.slurm.commands`: it may hang, and its refusal is to be read as it was written.
    """

    def _num_tasks(self) -> int:
        return 1

    def _submit_command(self, command: str) -> SlurmJob[Any]:
        number = uuid.uuid4().hex
        script = self.folder / f"submission_file_{number}.sh"
        script.write_text(self._make_submission_file_text(command, number))
        try:
            job = SlurmJob(folder=self.folder, job_id=submit(script), tasks=[0])
        except BaseException:
            script.unlink()
            raise
        job.paths.move_temporary_file(script, "submission_file", keep_as_symlink=True)
        return job


def slurm_parameters(run: LaunchedRun, link: int, *, after: str | None) -> dict[str, Any]:
    """Return the .sub's header as parameters of submitit: the header wins over submitit's defaults."""
    options: Mapping[str, str] = {**run.header.options, "job-name": run.directory.name}
    if after is not None:
        options = {**options, "dependency": f"afterany:{after}"}
    dropped = ("output", "error")  # the log belongs to the run directory
    names = {"open-mode": "open-mode"}  # the one that submitit itself writes with a dash
    additional = {
        names.get(name, name.replace("-", "_")): value or True for name, value in options.items() if name not in dropped
    }
    return {
        "use_srun": False,
        "stderr_to_stdout": True,
        "setup": [
            "trap : TERM USR1 USR2",  # a shell that dies of its signal takes the job with it, saving or not
            f"export PYTHONPATH={shlex.quote(run.python_path)}",
        ],
        # submitit's own defaults for these would stand where the header says nothing
        "nodes": None,
        "time": None,
        "wckey": None,
        "additional_parameters": additional,
    }


def submission_text(run: LaunchedRun, link: int, *, after: str | None) -> str:
    """Return the batch script that submitit hands to sbatch for a link, and below it what that script runs."""
    worker = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(run.log_folder(link)))}"
    text = _make_sbatch_string(worker, run.log_folder(link), **slurm_parameters(run, link, after=after))
    return f"{text}# which runs\n# {run.command(link)}\n"


def submit_to_slurm(run: LaunchedRun, link: int, *, after: str | None) -> str:
    """Submit one link; return its job id."""
    executor = BatchExecutor(folder=run.log_folder(link))
    executor.update_parameters(**slurm_parameters(run, link, after=after))
    positional, named = run.call(link)
    return str(executor.submit(*positional, **named).job_id)


def start_here(run: LaunchedRun, link: int) -> LocalJob[Any]:
    """Start one link on this machine."""
    executor = DetachedLocalExecutor(folder=run.log_folder(link))
    positional, named = run.call(link)
    job: LocalJob[Any] = executor.submit(*positional, **named)
    return job


def debug_here(run: LaunchedRun, link: int) -> DebugJob[Any]:
    """Return one link as a job of this terminal; it runs when its result is asked for."""
    positional, named = run.call(link)
    job: DebugJob[Any] = DebugExecutor(folder=run.log_folder(link)).submit(*positional, **named)
    return job


def link_seed(base: int | str, link: int) -> int:
    """Return 32 bits that follow from the run's seed (or its name, where the recipe keeps its default) and the link."""
    digest = hashlib.sha256(f"baton link {base} {link}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
