"""The ledger of a run, chain.jsonl: what was submitted, started and ended, read as links and as attempts at them.

Keys of `submitted`: job_id, seed, argv, commit, dirty, ... Of `started`: job_id, host, pid, token, step, seed,
config_hash. Of `ended`: exit_code, reason, step, token, train_s, wall_s. A command reads the events once, and passes on
what it read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from core.rundir.checkpoints import newest_complete
from core.rundir.exit_codes import PLANNED, ExitCode, describe_exit
from core.rundir.files import CHECKPOINTS, LEDGER, LOGS
from core.rundir.whole_files import append_record, now, read_records

Event = dict[str, Any]
EVENTS = ("submitted", "started", "ended")
# SLURM's words for what happens to a job from outside: no fault of the run.
OUTSIDE = frozenset(("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REQUEUED"))


def record_link(run: Path, *, event: str, link: int, **facts: Any) -> None:
    """Append one event of a link to the ledger."""
    append_record(run / LEDGER, {"event": event, "link": link, "time": now(), **facts})


def read_events(run: Path) -> list[Event]:
    """Return the events of all links in the order in which they were written."""
    records = read_records(run / LEDGER)
    return [record for record in records if isinstance(record.get("link"), int) and record.get("event") in EVENTS]


@dataclass
class LinkRecord:
    """One job of the chain, as the ledger tells it; None for what it does not tell (yet)."""

    number: int
    submitted: Event = field(default_factory=dict)
    started: Event = field(default_factory=dict)
    ended: Event = field(default_factory=dict)

    @property
    def job_id(self) -> str | None:
        """The id of its job, as SLURM or this machine gave it."""
        job_id = self.submitted.get("job_id") or self.started.get("job_id")
        return None if job_id is None else str(job_id)

    @property
    def seed(self) -> int | None:
        return self.submitted.get("seed", self.started.get("seed"))

    @property
    def exit_code(self) -> int | None:
        return self.ended.get("exit_code")

    @property
    def step(self) -> int | None:
        """The step at which it ended."""
        return self.ended.get("step")

    @property
    def outcome(self) -> str:
        """The reason for its end, in words; empty while it has not ended."""
        return end_in_words(self.ended)

    @property
    def has_run(self) -> bool:
        """False where it ended in the queue: cancelled, or its turn had not come."""
        return bool(self.ended.get("ran", True))

    @property
    def is_on_slurm(self) -> bool:
        """True where SLURM has its job."""
        return self.submitted.get("cluster") == "slurm"


@dataclass
class LinkAttempt:
    """One start of a link. `started` is empty where it ended before training; `ended` where nobody told its end."""

    link: int
    started: Mapping[str, Any] = field(default_factory=dict)
    ended: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_from_outside(self) -> bool:
        """True where it was preempted or lost its node: no fault of the run."""
        return self.ended.get("exit_code") == ExitCode.NODE or self.ended.get("slurm_state") in OUTSIDE

    @property
    def wall_s(self) -> float | None:
        """The seconds from the start of its processes to the end, as they measured it; else by the ledger's clock."""
        if not (self.started and self.ended):
            return None
        if "wall_s" in self.ended:
            return float(self.ended["wall_s"])
        start, end = (datetime.fromisoformat(event["time"]) for event in (self.started, self.ended))
        return (end - start).total_seconds()


def read_links(run: Path) -> list[LinkRecord]:
    return links_of(read_events(run))


def links_of(events: Iterable[Event]) -> list[LinkRecord]:
    """Return the links in order. A requeued link keeps its latest start; an older token's end does not count."""
    links: dict[int, LinkRecord] = {}
    for event in events:
        link = links.setdefault(event["link"], LinkRecord(event["link"]))
        if event["event"] == "started":
            link.ended = {}
        is_late = event.get("token", 0) < link.started.get("token", 0) and "token" in event
        if event["event"] != "ended" or not is_late:
            setattr(link, event["event"], event)
    return [links[number] for number in sorted(links)]


def attempts_of(events: Iterable[Event], *, first_link: int = 1) -> list[LinkAttempt]:
    """Return every start of every link, in order, from a link on. Links that were cancelled in the queue are none."""
    attempts: list[LinkAttempt] = []
    for event in events:
        if event["link"] < first_link:
            continue
        if event["event"] == "started":
            attempts.append(LinkAttempt(event["link"], started=event))
        elif event["event"] == "ended" and event.get("ran", True):
            _end(attempts, event)
    return attempts


def _end(attempts: list[LinkAttempt], event: Event) -> None:
    """Give an end to the start that it belongs to; one that says no token belongs to the last of its link."""
    for attempt in reversed(attempts):
        if attempt.link != event["link"]:
            continue
        is_mine = "token" not in event or event["token"] == attempt.started.get("token")
        if event.get("corrected") or (attempt.started and not attempt.ended and is_mine):
            attempt.ended = event
            return
    if "token" not in event:
        attempts.append(LinkAttempt(event["link"], ended=event))


def next_number(links: Sequence[LinkRecord]) -> int:
    """Return the number of the next link. Links are numbered from 1 over the whole life of a run."""
    return max((link.number for link in links), default=0) + 1


def newest_step(run: Path, links: Iterable[LinkRecord]) -> int:
    """Return the step from which the next link goes on: the newest checkpoint, or where a link ended as planned."""
    checkpoint = newest_complete(run / CHECKPOINTS)
    planned = [link.step or 0 for link in links if link.exit_code in PLANNED]
    return max([*planned, 0 if checkpoint is None else checkpoint.step])


def pieces_so_far(run: Path) -> int:
    """Return how many pieces the links of a preparation have made: their `step`, as it has no updates."""
    ends = (event for event in read_events(run) if event["event"] == "ended" and event.get("exit_code") in PLANNED)
    return max((event.get("step") or 0 for event in ends), default=0)


def end_in_words(ended: Mapping[str, Any]) -> str:
    """Return why a link ended, from its last event; empty while there is none."""
    if not ended:
        return ""
    code, reason = ended.get("exit_code"), ended.get("reason")
    if code is None and reason:
        return str(reason)
    words = describe_exit(code)
    return f"{words}: {reason}" if reason and reason != words else words


def link_logs(run: Path, link: int) -> Path:
    """Return the folder of what a link prints."""
    return run / LOGS / f"link_{link}"


def rank_files(run: Path, link: int) -> Path:
    """Return the folder in which the ranks of a link tell where they are and why they failed."""
    return link_logs(run, link) / "ranks"
