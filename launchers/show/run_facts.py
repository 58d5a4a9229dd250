"""Everything that is known of a run, from its files and SLURM's queue: what `status --json` prints."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.rundir.files import DONE, FAILED, STOP
from core.rundir.lease import find_holder
from core.rundir.ledger import (
    Event,
    LinkAttempt,
    LinkRecord,
    attempts_of,
    end_in_words,
    links_of,
    newest_step,
    read_events,
)
from core.rundir.metrics_log import latest_metrics
from launchers.show.results import summarize
from launchers.show.run_state import state_of
from launchers.slurm.link import STATES
from launchers.slurm.queue import Job, active, read_queue

DIED = frozenset("BOOT_FAIL DEADLINE NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT".split())


def facts_of(runs: Iterable[Path]) -> list[dict[str, Any]]:
    return facts_from({run: read_events(run) for run in runs})


def facts_from(ledgers: Mapping[Path, Sequence[Event]]) -> list[dict[str, Any]]:
    """Return the facts of runs whose ledgers have been read; SLURM is asked once at most for all of them."""
    found = [(run, links_of(events), attempts_of(events)) for run, events in ledgers.items()]
    queue = read_queue([link for _, links, _ in found for link in links])
    return [_facts(run, links, attempts, queue) for run, links, attempts in found]


def _facts(run: Path, links: list[LinkRecord], attempts: list[LinkAttempt], queue: Mapping[str, Job]) -> dict[str, Any]:
    metrics = latest_metrics(run, links)
    resume_step = newest_step(run, links)
    state = state_of(run, links, queue=active(queue, links))
    if state == "not started" and any(_died_early(run, link, links, queue.get(link.job_id or "")) for link in links):
        state = "failed"
    return {
        **summarize(run, links, attempts, metrics, step=resume_step),
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
    run: Path,
    link: LinkRecord,
    links: list[LinkRecord],
    attempts: list[LinkAttempt],
    queue: Mapping[str, Job],
    state: str,
) -> dict[str, Any]:
    """Return the facts of a link. `attempts`: its starts, several where SLURM requeued it."""
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


def _unended(run: Path, link: LinkRecord, links: list[LinkRecord], job: Job | None, state: str) -> str:
    """Return what is to be said of a link whose end nobody has told."""
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


def _died_early(run: Path, link: LinkRecord, links: list[LinkRecord], job: Job | None) -> bool:
    """Tell whether SLURM says that a job is dead that never told of a start."""
    if job is None or link.started or link.ended:
        return False
    is_told = any((run / marker).exists() for marker in (DONE, STOP, FAILED))  # then it had nothing to do, and left
    is_followed = any(later.started for later in links if later.number > link.number)
    return job.state in DIED or (job.state == "FAILED" and not is_told and not is_followed)


def _why(run: Path, links: list[LinkRecord]) -> str:
    """Return why nothing is going on, in words."""
    if (run / DONE).exists():
        return ""
    for marker in (STOP, FAILED):
        if (run / marker).exists():
            return (run / marker).read_text(encoding="utf-8").strip()
    ended = [link for link in links if link.ended]
    if ended and links[-1].ended and not find_holder(run):
        return f"link {ended[-1].number}: {ended[-1].outcome}"
    return ""


def training_time_ratio(attempts: Sequence[LinkAttempt]) -> float | None:
    """Return the share of the attempts' time that went into steps that count; None where nothing is measured.

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
