"""SLURM's commands, asked so that a controller that is busy, restarting or hung costs seconds and not the launcher."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 20.0  # of one attempt
ATTEMPTS = 3
PAUSE_S = 2.0  # between two attempts

# What SLURM says when it might answer a moment later.
PASSING = re.compile(
    "unable to contact slurm controller|socket timed out|zero bytes were transmitted|resource temporarily unavailable"
    "|temporarily unable to accept|connection refused|connection timed out|connection failure|unable to connect",
    re.IGNORECASE,
)
# Of the enclosing job, MPI or torchrun: sbatch would read them as options, and the new job as its own.
FOREIGN = re.compile(r"SLURM_(?!CONF$)|PMIX?_|BATON_(LINK|LOCAL_TASKS)|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$")


class SlurmError(RuntimeError):
    """A command of SLURM failed for good: its own words. `is_unclear`: it may have had its effect all the same."""

    def __init__(self, words: str, *, is_unclear: bool = False) -> None:
        super().__init__(words)
        self.is_unclear = is_unclear


def ask(command: Sequence[str], *, attempts: int = ATTEMPTS, timeout_s: float | None = None) -> str:
    """Return what a command prints. It is tried again where it hangs or SLURM is busy; SlurmError when that fails."""
    for attempt in range(1, attempts + 1):
        try:
            return _ask_once(command, timeout_s=TIMEOUT_S if timeout_s is None else timeout_s)
        except SlurmError as error:
            if attempt == attempts or not error.is_unclear:
                raise
        time.sleep(PAUSE_S)
    raise AssertionError("attempts is at least 1")


def _ask_once(command: Sequence[str], *, timeout_s: float) -> str:
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]} is not installed here")
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=own_environment()
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer in {timeout_s:g} s", is_unclear=True) from None
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error.strerror}") from error
    if run.returncode != 0:
        words = run.stderr.strip() or run.stdout.strip() or f"{command[0]} ended with exit code {run.returncode}"
        raise SlurmError(words, is_unclear=PASSING.search(words) is not None)
    return run.stdout


def own_environment() -> dict[str, str]:
    """Return the environment without what belongs to the job that the launcher itself may run in."""
    return {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}


def submit(script: Path) -> str:
    """Hand a batch script to sbatch; the job's id. SlurmError with sbatch's words where it is refused.

    A submission that got no answer may have arrived. It is looked for in the queue by the name of its script, which
    no other submission has, before it is tried again; where the queue does not answer either, it is not.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _job_id(_ask_once(["sbatch", str(script)], timeout_s=TIMEOUT_S))
        except SlurmError as error:
            if not error.is_unclear:
                raise
            found = _find_job(script, because=error)
            if found is not None:
                return found
            if attempt == ATTEMPTS:
                raise
        time.sleep(PAUSE_S)
    raise AssertionError("there is at least one attempt")


def _job_id(answer: str) -> str:
    match = re.search(r"job (\d+)", answer)
    if match is None:
        raise SlurmError(f"sbatch answered {answer.strip()!r}, without the number of a job")
    return match[1]


def _find_job(script: Path, *, because: SlurmError) -> str | None:
    """Find the job of a batch script, also one that is over; None if there is none. SlurmError if squeue cannot say."""
    try:
        answer = ask(["squeue", "--noheader", "--me", "--states=all", "--format=%A %o"])
    except SlurmError as error:
        words = f"{because}\nand squeue: {error}\n{script} may be queued: look with squeue --me, and scancel it"
        raise SlurmError(words, is_unclear=True) from None
    jobs = (line.partition(" ") for line in answer.splitlines())
    return next((job for job, _, command in jobs if command.strip() == str(script)), None)


def cancel_jobs(jobs: Sequence[str], *, options: Sequence[str] = ()) -> str | None:
    """Call `scancel` for some jobs; return None when it did its work, else SLURM's words."""
    if not jobs:
        return None
    try:
        ask(["scancel", *options, *jobs])
    except SlurmError as error:
        return str(error)
    return None
