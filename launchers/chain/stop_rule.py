"""What the links of a chain have achieved, and whether another one may follow them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from core.rundir.checkpoints import list_damaged, list_named
from core.rundir.exit_codes import PLANNED, ExitCode
from core.rundir.files import CHECKPOINTS
from core.rundir.ledger import LinkAttempt, LinkRecord, end_in_words, newest_step

# Another link cannot mend these; the rest (a bug, a lost node, a hang, out of memory) may have been bad luck.
HOPELESS = (ExitCode.CONFIG, ExitCode.STORAGE, ExitCode.DIVERGED, ExitCode.DATA, ExitCode.LEASE)
MOST_UNPRODUCTIVE = 3  # whoever is to blame


@dataclass(frozen=True)
class LinkOutcome:
    """What one link did. `resume_from`, `resume_at`: the step at which it could resume, and the next one can."""

    link: int
    exit_code: int | None
    words: str
    resume_from: int
    resume_at: int
    last_step: int | None = None  # where it ended, saved or not
    is_from_outside: bool = False  # preempted, or its node was lost: no fault of the run

    @property
    def made_progress(self) -> bool:
        """True where the next link goes on from a later step than this one did."""
        return self.resume_at > self.resume_from


def outcomes_of(run: Path, attempts: Sequence[LinkAttempt], links: Sequence[LinkRecord]) -> list[LinkOutcome]:
    """Return what each attempt achieved. The last one is measured by the checkpoints.

    One that another job kept from the run, or took it from, says nothing of the run.
    """
    attempts = [attempt for attempt in attempts if attempt.ended.get("exit_code") != ExitCode.LEASE]
    if not attempts:
        return []
    return [
        LinkOutcome(
            link=attempt.link,
            exit_code=attempt.ended.get("exit_code"),
            words=end_in_words(attempt.ended),
            resume_from=start,
            resume_at=end,
            last_step=attempt.ended.get("step"),
            is_from_outside=attempt.is_from_outside,
        )
        for attempt, (start, end) in zip(attempts, _steps(run, attempts, links), strict=True)
    ]


def _steps(run: Path, attempts: Sequence[LinkAttempt], links: Sequence[LinkRecord]) -> list[tuple[int, int]]:
    """Return for each attempt the step from which it went on, and the one from which the next can."""
    checkpoints = run / CHECKPOINTS
    has_saved = bool(list_named(checkpoints) or list_damaged(checkpoints))
    if not has_saved and not any(attempt.started.get("step") for attempt in attempts):
        # A preparation saves no steps: where it ends as planned it says how many pieces all links so far have made.
        before = newest_step(run, [link for link in links if link.number < attempts[0].link])
        planned = [attempt.ended.get("exit_code") in PLANNED for attempt in attempts]
        pieces = [one.ended.get("step") or 0 if known else 0 for one, known in zip(attempts, planned, strict=True)]
        return list(pairwise(accumulate(pieces, max, initial=before)))
    reached = [newest_step(run, links)]
    for later in reversed(attempts[1:]):  # one that did not begin does not tell: the one after it does
        reached.insert(0, int(later.started.get("step", reached[0])))
    return [(int(one.started.get("step", step)), step) for one, step in zip(attempts, reached, strict=True)]


def reason_to_stop(outcomes: Sequence[LinkOutcome]) -> str | None:
    """Return why the chain must not start another link after these, in words; None when it may.

    Links that end as planned (75) or crash are followed by the next one, until two in a row make no new step or
    fail in the same way at the same step. Failures that the next link would only repeat stop the chain at once.
    Preemption and lost nodes are no fault of the run, but after three links in a row for nothing it stops, too.
    """
    if not outcomes:
        return None
    last = outcomes[-1]
    if last.exit_code in HOPELESS:
        return f"link {last.link}: {last.words}"
    if len(outcomes) < 2:
        return None
    before = outcomes[-2]
    idle = _idle_at_the_end(outcomes)
    if len(idle) >= MOST_UNPRODUCTIVE or (len(idle) >= 2 and not all(one.is_from_outside for one in idle)):
        return f"{_links(idle)} made no new step; link {last.link}: {last.words}"
    failed = last.exit_code != ExitCode.CONTINUE and not last.is_from_outside
    same = (last.exit_code, last.last_step) == (before.exit_code, before.last_step)
    if failed and same and last.last_step is not None:
        return f"links {before.link} and {last.link} failed alike at step {last.last_step}: {last.words}"
    return None


def _idle_at_the_end(outcomes: Sequence[LinkOutcome]) -> list[LinkOutcome]:
    """Return the last links that made no new step, as many as there are in a row."""
    idle: list[LinkOutcome] = []
    for outcome in reversed(outcomes):
        if outcome.made_progress:
            break
        idle.insert(0, outcome)
    return idle


def _links(outcomes: Sequence[LinkOutcome]) -> str:
    """Return `links 2 and 3`; `link 2, started 3 times` where SLURM requeued it."""
    numbers = list(dict.fromkeys(str(outcome.link) for outcome in outcomes))
    if len(numbers) == 1:
        return f"link {numbers[0]}, started {len(outcomes)} times,"
    return f"links {', '.join(numbers[:-1])} and {numbers[-1]}"
