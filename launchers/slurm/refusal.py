"""When sbatch refuses a link: what it said, and what becomes of the links that it had taken."""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from core.rundir.files import LAUNCHER_LOCK, LEDGER, LOGS
from core.rundir.ledger import link_logs, record_link
from launchers.slurm.commands import SlurmError, cancel_jobs

Queued = tuple[int, str]  # link, job


def undo_submission(directory: Path, link: int, queued: Sequence[Queued], *, error: SlurmError, is_kept: bool) -> str:
    """Leave nothing half-submitted behind, unless asked to; return what happened, in words for a person."""
    _forget(directory, link)
    words = [f"link {link} is not submitted; SLURM says:", *(f"  {line}" for line in str(error).splitlines())]
    if not queued:
        return "\n".join(words)
    if is_kept:
        return "\n".join([*words, f"kept as asked: {_jobs(queued)}"])
    back = cancel_queued(directory, queued, because=f"link {link} was refused")
    return "\n".join([*words, f"{back} (--keep-queued keeps what was taken)"])


def cancel_queued(directory: Path, queued: Sequence[Queued], *, because: str) -> str:
    """Cancel links that have just been queued; return what became of them, in words."""
    problem = cancel_jobs([job for _, job in queued])
    if problem is not None:
        return f"still queued, as scancel failed ({problem}): {_jobs(queued)}"
    for number, _ in queued:
        reason = f"cancelled before it began, as {because}"
        record_link(directory, event="ended", link=number, exit_code=None, reason=reason, step=None, ran=False)
    return f"cancelled again: {_jobs(queued)}"


def _jobs(queued: Sequence[Queued]) -> str:
    return ", ".join(f"link {number} (job {job})" for number, job in queued)


def _forget(directory: Path, link: int) -> None:
    """Remove what the submission of a link had written, and a run directory in which nothing else is."""
    shutil.rmtree(link_logs(directory, link), ignore_errors=True)
    if not (directory / LEDGER).exists():
        for script in directory.glob(f"{LOGS}/*.sub"):
            script.unlink()
        (directory / LOGS / LAUNCHER_LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            (directory / LOGS).rmdir()
            directory.rmdir()
