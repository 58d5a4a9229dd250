"""Everything that is known of a run, from its files and SLURM's queue: what `status --json` prints."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.rundir.files import DONE, FAILED, STOP
from core.rundir.ledger import (
    Link,
    end_in_words,
    holder,
    latest_metrics,
    newest_step,
    read_links,
    state_of,
)
from launchers.show.attempts import Attempt, read_attempts
from launchers.show.results import summary
from launchers.slurm.link import STATES
from launchers.slurm.queue import Job, active, read_queue

DIED = frozenset("BOOT_FAIL DEADLINE NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT".split())


def facts_of(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """The facts of some runs; SLURM is asked once at most for all of them."""
    found = [(run, read_links(run)) for run in runs]
    queue = read_queue([link for _, links in found for link in links])
    return [_facts(run, links, queue) for run, links in found]


def _facts(run: Path, links: list[Link], queue: Mapping[str, Job]) -> dict[str, Any]:
    metrics = latest_metrics(run, links)
    attempts = read_attempts(run)
    resume_step = newest_step(run, links)
    state = state_of(run, links, queue=active(queue, links))
    if state == "not started" and any(_died_early(run, link, links, queue.get(link.job_id or "")) for link in links):
        state = "failed"
    return {
        **summary(run, links, attempts, metrics, resume_step=resume_step),
        "state": state,
        "loss": metrics.get("loss"),
        "eta_s": metrics.get("eta_s"),
        "resume_step": resume_step,
        "directory": str(run),
        "why": _why(run, links),
        "training_time_ratio": training_time_ratio(attempts),
        "link_table": [
            _link_facts(run, link, links, [one for one in attempts if one.link == link.number], queue, state)
            for link in links
        ],
    }


def _link_facts(
    run: Path, link: Link, links: list[Link], attempts: list[Attempt], queue: Mapping[str, Job], state: str
) -> dict[str, Any]:
    """`attempts`: the starts of this link, several where SLURM requeued it."""
    last = link.outcome or _unended(run, link, links, queue.get(link.job_id or ""), state)
    earlier = [end_in_words(attempt.ended) for attempt in attempts[:-1] if attempt.ended]
    walls = [attempt.wall_s for attempt in attempts if attempt.wall_s is not None]
    return {
        "link": link.number,
        "job_id": link.job_id,
        "seed": link.seed,
        "node": link.started.get("host"),
        "first_step": link.started.get("step"),
        "last_step": link.step,
        "exit_code": link.exit_code,
        "outcome": "; then ".join([*earlier, last]),
        "time_s": sum(walls) if walls else None,
        "training_time_ratio": training_time_ratio(attempts),
        "commit": link.submitted.get("commit"),
        "dirty": link.submitted.get("dirty"),
        "code": link.submitted.get("code"),
    }


def _unended(run: Path, link: Link, links: list[Link], job: Job | None, state: str) -> str:
    """What is to be said of a link whose end nobody has told."""
    if link.started:
        if state == "running" and link is [one for one in links if one.started][-1]:
            return "running"
        if job is None:
            return "ended without a word: killed, or its node was lost"
        if job.is_over:
            return STATES.get(job.state, job.state.lower())
        return "running" if job.state == "RUNNING" else job.words
    if job is not None and not job.is_over:
        return job.words
    if _died_early(run, link, links, job):
        assert job is not None
        return f"died before it began to work: {STATES.get(job.state, 'see its log')}"
    if any(later.started for later in links if later.number > link.number):
        return "never began"
    markers = {DONE: "not needed: the run was done", STOP: "cancelled before it began", FAILED: "not tried any more"}
    return next((words for marker, words in markers.items() if (run / marker).exists()), "not started")


def _died_early(run: Path, link: Link, links: list[Link], job: Job | None) -> bool:
    """Whether SLURM says that a job is dead that never told of a start."""
    if job is None or link.started or link.ended:
        return False
    is_told = any((run / marker).exists() for marker in (DONE, STOP, FAILED))  # then it had nothing to do, and left
    is_followed = any(later.started for later in links if later.number > link.number)
    return job.state in DIED or (job.state == "FAILED" and not is_told and not is_followed)


def _why(run: Path, links: list[Link]) -> str:
    """Why nothing is going on, in words."""
    if (run / DONE).exists():
        return ""
    for marker in (STOP, FAILED):
        if (run / marker).exists():
            return (run / marker).read_text(encoding="utf-8").strip()
    ended = [link for link in links if link.ended]
    if ended and links[-1].ended and not holder(run):
        return f"link {ended[-1].number}: {ended[-1].outcome}"
    return ""


def training_time_ratio(attempts: Sequence[Attempt]) -> float | None:
    """The share of the attempts' time that went into steps that count; None where nothing is measured.

    Steps that a later attempt had to do again count as lost, and so does one that died without a word: for one that
    SLURM requeued, until it was started again.
    """
    ended = [attempt for attempt in attempts if attempt.started and attempt.ended]
    total_s = sum(attempt.wall_s or 0.0 for attempt in ended)
    if not ended or total_s <= 0 or not any("train_s" in attempt.ended for attempt in ended):
        return None
    kept_s = 0.0
    for attempt, later in pairwise([*ended, None]):
        assert attempt is not None
        start, end = attempt.started.get("step", 0), attempt.ended.get("step") or 0
        lost = 0 if later is None else max(0, end - later.started.get("step", 0))
        share = 1.0 if end <= start else max(0.0, 1 - lost / (end - start))
        kept_s += share * float(attempt.ended.get("train_s") or 0.0)
    return min(1.0, kept_s / total_s)
