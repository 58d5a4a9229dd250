"""One attempt at a run: its directory, its command, its way from start to end.

    runs/SUITE/runs/ab-tuned-r1/attempt_1/     run directory of the training, and what was measured beside it:
        attempt.json   host, pid, command, since when
        launcher.log   everything that the processes printed
        ended.json     written last: status, exit code, reason, seconds

Every attempt trains in a directory of its own, so no number of one gets among those of another. One without ended.json
was cut off: by a kill of the bench, or the loss of its node.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil

from core.bench.settings import ROOT, BenchConfig, WatchConfig
from core.bench.telemetry.heartbeat import Heartbeat
from core.bench.telemetry.machine import free_port
from core.bench.telemetry.recorder import recorded
from core.job.context import scrubbed_argv
from core.rundir.environment import ENV_LINK, ENV_LINK_SEED, ENV_LOCAL_TASKS, ENV_RUNS, slurm_job
from core.rundir.exit_codes import EXIT_WORDS, ExitCode
from core.rundir.files import DONE
from core.rundir.processes import StopRequests, session_members
from core.rundir.whole_files import read_json, write_json

logger = logging.getLogger(__name__)

BEGUN, ENDED, LOG = "attempt.json", "ended.json", "launcher.log"
OK, FAILED, TIMEOUT, STALLED, INTERRUPTED, LOST = "ok", "failed", "timeout", "stalled", "interrupted", "lost"
NAME = re.compile(r"attempt_(\d+)")
# What belongs to the job that the bench itself runs in, and would be read by the training.
FOREIGN = (ENV_LINK, ENV_LINK_SEED, ENV_LOCAL_TASKS, "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
POLL_S = 0.2


@dataclass(frozen=True)
class Ended:
    """How an attempt ended. `exit_code`: minus the signal for a process that died of one."""

    status: str
    exit_code: int | None
    reason: str
    duration_s: float
    stall_alerts: int = 0
    spike_alerts: int = 0


@dataclass(frozen=True)
class Attempt:
    """A directory `attempt_K` under that of its run."""

    directory: Path

    @property
    def number(self) -> int:
        return int(self.directory.name.removeprefix("attempt_"))

    @property
    def begun(self) -> dict[str, Any]:
        """The content of attempt.json; empty where it did not get that far."""
        return read_facts(self.directory / BEGUN)

    @property
    def ended(self) -> Ended | None:
        """The end of it, once there is one."""
        found = read_facts(self.directory / ENDED)
        return Ended(**found) if found else None

    def settle(self, *, grace_s: float) -> None:
        """End what still lives of an attempt that was cut off, and note what it has reached."""
        begun = self.begun
        if begun and begun["host"] == socket.gethostname() and is_still_led(begun["pid"], created=begun["created"]):
            logger.warning("%s was left behind and still runs: ending it", self.directory)
            end_session(begun["pid"], grace_s=grace_s)
        touched = max((path.stat().st_mtime for path in self.directory.iterdir()), default=0.0)
        duration_s = max(0.0, touched - begun["epoch_sec"]) if begun else 0.0
        if (self.directory / DONE).exists():
            ended = Ended(OK, 0, "finished while nobody watched", duration_s)
        else:
            ended = Ended(LOST, None, "the bench was killed, or its node was lost", duration_s)
        write_json(self.directory / ENDED, vars(ended))


def attempts_at(run_folder: Path) -> list[Attempt]:
    """Return the attempts at a run in their order."""
    found = [Attempt(path) for path in run_folder.glob("attempt_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda attempt: attempt.number)


def attempt_run(run_folder: Path, config: BenchConfig, overrides: Sequence[str], *, stops: StopRequests) -> Attempt:
    """Make a new attempt, from its directory to its end."""
    number = max((attempt.number for attempt in attempts_at(run_folder)), default=0) + 1
    attempt = Attempt(run_folder / f"attempt_{number}")
    folder = attempt.directory
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment |= {ENV_RUNS: str(run_folder), "PYTHONUNBUFFERED": "1"}
    if slurm_job() is None:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port(config.launch.master_port_base))}
    port = environment.get("MASTER_PORT", "")
    arguments = ["--config", str(ROOT / config.config), f"run.name={folder.name}", *overrides]
    command = launch_command(config, arguments, port=port)
    began = time.time()
    process = start_session(command, log=folder / LOG, environment=environment, folder=ROOT)
    try:
        created = psutil.Process(process.pid).create_time()
        begun = {"host": socket.gethostname(), "pid": process.pid, "created": created, "epoch_sec": began, "port": port}
        write_json(folder / BEGUN, {**begun, "command": scrubbed_argv(command)})
        heartbeat = Heartbeat(f"{run_folder.name} {folder.name}", folder, config.watch)
        with recorded(folder, config.telemetry, pid=process.pid):
            status, reason = _watch(process, config.watch, heartbeat, began=began, stops=stops)
            if status:
                logger.warning("%s: %s: ending it", run_folder.name, reason)
    finally:  # whatever happened, nothing of it goes on
        end_session(process.pid, grace_s=config.watch.stop_grace_s, stops=stops)
    heartbeat.beat()
    code = process.wait()
    if not status or (code == ExitCode.DONE and (folder / DONE).exists()):
        status, reason = _judged(code, stops=stops)
    ended = Ended(status, code, reason, time.time() - began, heartbeat.num_stalls, heartbeat.num_spikes)
    write_json(folder / ENDED, vars(ended))
    return attempt


def launch_command(config: BenchConfig, arguments: Sequence[str], *, port: str) -> list[str]:
    """Return what starts the training as all its ranks: srun in a SLURM job, else torchrun, or Python alone."""
    module = ["-m", config.recipe, *arguments]
    if slurm_job() is not None:
        return ["srun", sys.executable, *module]
    if config.launch.ranks == 1:
        return [sys.executable, *module]
    of_ranks = ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={config.launch.ranks}"]
    return [sys.executable, *of_ranks, "--master-addr=127.0.0.1", f"--master-port={port}", *module]


def tail(path: Path, num_lines: int) -> str:
    """Return the last lines of a log."""
    if not path.exists() or num_lines == 0:
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])


def read_facts(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty where it is not there, or damaged."""
    try:
        return dict(read_json(path))
    except (OSError, ValueError):
        return {}


def _watch(
    process: "Popen[bytes]", watch: WatchConfig, heartbeat: Heartbeat, *, began: float, stops: StopRequests
) -> tuple[str, str]:
    """Follow a run until it has ended, or must: then return (status, reason), else both empty."""
    status = reason = ""
    while not status and process.poll() is None:
        time.sleep(POLL_S)
        heartbeat.beat()
        status, reason = _why_to_end(watch, heartbeat, elapsed_s=time.time() - began, stops=stops)
    return status, reason


def _why_to_end(watch: WatchConfig, heartbeat: Heartbeat, *, elapsed_s: float, stops: StopRequests) -> tuple[str, str]:
    """Return (status, reason) of a run that must not go on; both empty while it may."""
    if stops.count:
        return INTERRUPTED, "stop requested"
    if watch.run_timeout_s is not None and elapsed_s > watch.run_timeout_s:
        return TIMEOUT, f"it takes longer than watch.run_timeout_s={watch.run_timeout_s:g}"
    if not heartbeat.has_begun and elapsed_s > watch.max_wait_first_record_s:
        return STALLED, f"no record after watch.max_wait_first_record_s={watch.max_wait_first_record_s:g}"
    if watch.stall_timeout_s is not None and heartbeat.has_begun and heartbeat.silent_s() > watch.stall_timeout_s:
        return STALLED, f"no record for watch.stall_timeout_s={watch.stall_timeout_s:g}"
    return "", ""


def _judged(code: int, *, stops: StopRequests) -> tuple[str, str]:
    """Return (status, reason) by the exit code of a run that ended by itself."""
    if code == ExitCode.DONE:
        return OK, ""
    if code == ExitCode.CONTINUE or (stops.count and code < 0):
        return INTERRUPTED, EXIT_WORDS[ExitCode.CONTINUE]
    return FAILED, f"killed by signal {-code}" if code < 0 else EXIT_WORDS.get(code, f"exit code {code}")


def start_session(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], folder: Path
) -> "subprocess.Popen[bytes]":
    """Start a process that leads a session of its own, so that Ctrl-C reaches only us; what it prints goes to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def end_session(leader: int, *, grace_s: float, stops: StopRequests | None = None) -> None:
    """Ask all processes of a session to leave, and kill what is left of it after `grace_s`, or another request."""
    requests = stops.count if stops else 0
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while found := session_members(leader):
        if time.monotonic() > deadline or (stops and stops.count > requests):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S / 2)


def is_still_led(leader: int, *, created: float) -> bool:
    """Tell whether a session is the one whose leader was born at `created`: a number is used again.

    While a session has members its number is not; so without a leader its members are its own.
    """
    try:
        return abs(psutil.Process(leader).create_time() - created) < 1.0
    except psutil.NoSuchProcess:
        return bool(session_members(leader))
