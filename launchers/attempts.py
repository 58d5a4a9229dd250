"""The attempts of a chain: every start of every link, also of one that SLURM requeued, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.runfiles import LEDGER, ExitCode, read_records
from launchers.ledger import end_in_words, newest_step
from launchers.verdict import Outcome

# SLURM's words for what happens to a job from outside: no fault of the run.
OUTSIDE = frozenset(("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REQUEUED"))


@dataclass
class Attempt:
    """One start of a link. `started` is empty where it ended before training; `ended` where nobody told its end."""

    link: int
    started: Mapping[str, Any] = field(default_factory=dict)
    ended: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_from_outside(self) -> bool:
        return self.ended.get("exit_code") == ExitCode.NODE or self.ended.get("slurm_state") in OUTSIDE


def read_attempts(run: Path, *, first_link: int = 1) -> list[Attempt]:
    """The attempts in order, from a link on. Links that never ran (cancelled in the queue) are none."""
    attempts: list[Attempt] = []
    for record in read_records(run / LEDGER):
        link, event = record.get("link"), record.get("event")
        if not isinstance(link, int) or link < first_link:
            continue
        if event == "started":
            attempts.append(Attempt(link, started=record))
        elif event == "ended" and record.get("ran", True):
            _end(attempts, link, record)
    return attempts


def _end(attempts: list[Attempt], link: int, record: Mapping[str, Any]) -> None:
    """Give an end to the start that it belongs to; one that says no token belongs to the last of its link."""
    for attempt in reversed(attempts):
        is_mine = "token" not in record or record["token"] == attempt.started.get("token")
        if attempt.link == link and attempt.started and not attempt.ended and is_mine:
            attempt.ended = record
            return
    if "token" not in record:
        attempts.append(Attempt(link, ended=record))


def outcomes(run: Path, attempts: list[Attempt]) -> list[Outcome]:
    """What each attempt achieved, for the verdict on the chain. The last one is measured by the checkpoints."""
    if not attempts:
        return []
    reached = [newest_step(run)]
    for later in reversed(attempts[1:]):  # one that did not begin does not tell: the one after it does
        reached.insert(0, int(later.started.get("step", reached[0])))
    return [
        Outcome(
            link=attempt.link,
            exit_code=attempt.ended.get("exit_code"),
            words=end_in_words(attempt.ended),
            resume_from=attempt.started.get("step", step),
            resume_at=step,
            last_step=attempt.ended.get("step"),
            is_from_outside=attempt.is_from_outside,
        )
        for attempt, step in zip(attempts, reached, strict=True)
    ]
