"""The attempts of a chain: every start of every link, also of one that SLURM requeued, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from core.rundir.files import CHECKPOINTS, LEDGER, ExitCode, read_records
from core.rundir.ledger import PLANNED, end_in_words, newest_step, read_links, wall_s
from launchers.chain.verdict import Outcome

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

    @property
    def wall_s(self) -> float | None:
        return wall_s(self.started, self.ended)


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
        if attempt.link == link and record.get("corrected"):
            attempt.ended = record
            return
        is_mine = "token" not in record or record["token"] == attempt.started.get("token")
        if attempt.link == link and attempt.started and not attempt.ended and is_mine:
            attempt.ended = record
            return
    if "token" not in record:
        attempts.append(Attempt(link, ended=record))


def outcomes(run: Path, attempts: list[Attempt]) -> list[Outcome]:
    """What each attempt achieved, for the verdict on the chain. The last one is measured by the checkpoints.

    One that another job kept from the run, or took it from, says nothing of the run.
    """
    attempts = [attempt for attempt in attempts if attempt.ended.get("exit_code") != ExitCode.LEASE]
    if not attempts:
        return []
    return [
        Outcome(
            link=attempt.link,
            exit_code=attempt.ended.get("exit_code"),
            words=end_in_words(attempt.ended),
            resume_from=start,
            resume_at=end,
            last_step=attempt.ended.get("step"),
            is_from_outside=attempt.is_from_outside,
        )
        for attempt, (start, end) in zip(attempts, _ways(run, attempts), strict=True)
    ]


def _ways(run: Path, attempts: list[Attempt]) -> list[tuple[int, int]]:
    """Of each attempt the step from which it went on, and the one from which the next can."""
    if not any((run / CHECKPOINTS).glob("step_*")) and not any(one.started.get("step") for one in attempts):
        # A preparation saves no steps: where it ends as planned it says how many pieces all links so far have made.
        before = newest_step(run, [link for link in read_links(run) if link.number < attempts[0].link])
        planned = [one.ended.get("exit_code") in PLANNED for one in attempts]
        pieces = [one.ended.get("step") or 0 if known else 0 for one, known in zip(attempts, planned, strict=True)]
        return list(pairwise(accumulate(pieces, max, initial=before)))
    reached = [newest_step(run)]
    for later in reversed(attempts[1:]):  # one that did not begin does not tell: the one after it does
        reached.insert(0, int(later.started.get("step", reached[0])))
    return [(int(one.started.get("step", step)), step) for one, step in zip(attempts, reached, strict=True)]
