"""Everything that is known of a run, from its files and SLURM's queue: what `status --json` prints."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.runfiles import DONE, FAILED, STOP
from launchers.ledger import Link, holder, latest_metrics, newest_step, read_links, state_of
from launchers.results import summary
from launchers.slurm_link import STATES
from launchers.slurm_queue import Job, active, read_queue


def facts_of(runs: Iterable[Path]) -> list[dict[str, Any]]:
    """The facts of some runs; SLURM is asked once at most for all of them."""
    found = [(run, read_links(run)) for run in runs]
    queue = read_queue([link for _, links in found for link in links])
    return [_facts(run, links, queue) for run, links in found]


def _facts(run: Path, links: list[Link], queue: Mapping[str, Job]) -> dict[str, Any]:
    metrics = latest_metrics(run)
    resume_step = newest_step(run, links)
    state = state_of(run, links, queue=active(queue, links))
    return {
        **summary(run, links, metrics, resume_step=resume_step),
        "state": state,
        "loss": metrics.get("loss"),
        "eta_s": metrics.get("eta_s"),
        "resume_step": resume_step,
        "directory": str(run),
        "why": _why(run, links),
        "training_time_ratio": training_time_ratio(links),
        "link_table": [_link_facts(run, link, links, queue, state) for link in links],
    }


def _link_facts(run: Path, link: Link, links: list[Link], queue: Mapping[str, Job], state: str) -> dict[str, Any]:
    return {
        "link": link.number,
        "job_id": link.job_id,
        "seed": link.seed,
        "node": link.started.get("host"),
        "first_step": link.started.get("step"),
        "last_step": link.step,
        "exit_code": link.exit_code,
        "outcome": link.outcome or _unended(run, link, links, queue.get(link.job_id or ""), state),
        "time_s": link.wall_s,
        "training_time_ratio": training_time_ratio([link]),
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
    if any(later.started for later in links if later.number > link.number):
        return "never began"
    markers = {DONE: "not needed: the run was done", STOP: "cancelled before it began", FAILED: "not tried any more"}
    return next((words for marker, words in markers.items() if (run / marker).exists()), "not started")


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


def training_time_ratio(links: list[Link]) -> float | None:
    """The share of the links' time that went into steps that count; None where nothing is measured.

    Steps that a later link had to do again count as lost, and so does a link that died without a word.
    """
    started = [link for link in links if link.started and link.ended]
    total_s = sum(link.wall_s or 0.0 for link in started)
    if not started or total_s <= 0 or not any("train_s" in link.ended for link in started):
        return None
    kept_s = 0.0
    for link, later in pairwise([*started, None]):
        assert link is not None
        done = (link.step or 0) - link.started.get("step", 0)
        lost = 0 if later is None else max(0, (link.step or 0) - later.started.get("step", 0))
        share = 1.0 if done <= 0 else max(0.0, 1 - lost / done)
        kept_s += share * float(link.ended.get("train_s") or 0.0)
    return min(1.0, kept_s / total_s)
