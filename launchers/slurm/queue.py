"""SLURM's queue as the launcher sees it: one `squeue`, and what its words mean for a link."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from core.rundir.ledger import LinkRecord
from launchers.slurm.commands import SlurmError, ask

TIMEOUT_S = 5.0
OVER = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)


class Job(NamedTuple):
    """One job as squeue tells it, also for some minutes after its end."""

    state: str
    node: str
    start: str  # when it started, or is expected to; N/A where SLURM does not know
    reason: str  # why it waits

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def words(self) -> str:
        """The state of a job that has not begun its work, in words."""
        if self.state == "PENDING":
            because = {"Dependency": "waits for the link before", "BeginTime": "held by SLURM for a while"}
            words = because.get(self.reason, f"queued: {self.reason}")
            expected = self.start.replace("T", " ")[:16]
            return words if expected in ("N/A", "") else f"{words}, expected {expected}"
        return f"starting on {self.node}" if self.state == "RUNNING" else self.state.lower().replace("_", " ")


def slurm_jobs(links: Iterable[LinkRecord]) -> list[str]:
    """Return the jobs that SLURM may still know: of these links, submitted to it, and not known to have ended."""
    return [link.job_id for link in links if link.is_on_slurm and not link.ended and link.job_id is not None]


def read_queue(links: Iterable[LinkRecord]) -> dict[str, Job]:
    """Ask SLURM for the jobs of these links, by one call; empty where there are none or no SLURM answers."""
    wanted = set(slurm_jobs(links))
    if not wanted:
        return {}
    command = ["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%T|%N|%S|%r"]
    try:
        answer = ask(command, attempts=1, timeout_s=TIMEOUT_S)
    except SlurmError:
        return {}
    rows = (line.split("|", 4) for line in answer.splitlines() if line.count("|") >= 4)
    return {job: Job(*facts) for job, *facts in rows if job in wanted}


def active(queue: Mapping[str, Job], links: Iterable[LinkRecord]) -> dict[str, str]:
    """Return the state of each job of these links that waits or runs."""
    return {job: queue[job].state for job in slurm_jobs(links) if job in queue and not queue[job].is_over}


def job_facts(job: str) -> dict[str, str] | None:
    """Return what SLURM remembers of one job; empty where it has forgotten it, None where it does not answer."""
    try:
        answer = ask(["scontrol", "show", "job", "--oneliner", job])
    except SlurmError as error:
        return {} if "invalid job id" in str(error).lower() else None
    number, _, task = job.partition("_")
    for line in answer.splitlines():
        facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if (facts.get("ArrayTaskId") == task) if task else (facts.get("JobId") == number):
            return facts
    return {}
