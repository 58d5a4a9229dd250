"""Does a chain go on after a link has ended? A pure function of what the links did."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.rundir.files import ExitCode

# Another link cannot mend these; the rest (a bug, a lost node, a hang, out of memory) may have been bad luck.
HOPELESS = (ExitCode.CONFIG, ExitCode.STORAGE, ExitCode.DIVERGED, ExitCode.DATA, ExitCode.LEASE)
MOST_UNPRODUCTIVE = 3  # whoever is to blame


@dataclass(frozen=True)
class Outcome:
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
        return self.resume_at > self.resume_from


def reason_to_stop(outcomes: Sequence[Outcome]) -> str | None:
    """Why the chain must not start another link after these, in words; None when it may.

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


def _idle_at_the_end(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The last links that made no new step, as many as there are in a row."""
    idle: list[Outcome] = []
    for outcome in reversed(outcomes):
        if outcome.made_progress:
            break
        idle.insert(0, outcome)
    return idle


def _links(outcomes: Sequence[Outcome]) -> str:
    """`links 2 and 3`; `link 2, started 3 times` where SLURM requeued it."""
    numbers = list(dict.fromkeys(str(outcome.link) for outcome in outcomes))
    if len(numbers) == 1:
        return f"link {numbers[0]}, started {len(outcomes)} times,"
    return f"links {', '.join(numbers[:-1])} and {numbers[-1]}"
