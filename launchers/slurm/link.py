"""One link at work as a SLURM job: what comes before and after its .sub file.

    python -m launchers.slurm.link RUN bash FILE.sub run.name=RUN ...

Before: it writes down how the links before it ended, where they could not. A run that is over, stopped, or makes no
progress is not trained; the links that still wait are cancelled. After: the same, and its own end if nobody told it.
A link that another job keeps from the run touches nothing of that job's chain. Its exit code is the .sub file's.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.rundir.environment import ENV_GATE, link_from_environment, runs_root
from core.rundir.exit_codes import ExitCode, describe_exit
from core.rundir.files import DONE, FAILED, STOP
from core.rundir.ledger import Event, LinkAttempt, LinkRecord, attempts_of, links_of, read_events, record_link
from core.rundir.whole_files import write_whole
from launchers.chain.stop_rule import outcomes_of, reason_to_stop
from launchers.slurm.commands import cancel_jobs
from launchers.slurm.queue import OVER, job_facts, slurm_jobs
from launchers.slurm.takeover import take_over

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # they are for the ranks; this process waits for them

STATES = {
    "TIMEOUT": "the time limit came before it could save",
    "NODE_FAIL": "SLURM lost its node",
    "BOOT_FAIL": "its node did not boot",
    "PREEMPTED": "preempted before it could save",
    "OUT_OF_MEMORY": "SLURM killed it for its memory",
    "CANCELLED": "cancelled by scancel",
    "DEADLINE": "SLURM's deadline for it passed",
    "REQUEUED": "preempted or its node lost: SLURM started it again",
}


def main(words: list[str]) -> int:
    """Do a link; return the exit code of its .sub file, or of a link with nothing to do."""
    name, *command = words
    directory = runs_root() / name
    number = link_from_environment()[0]
    assert number is not None, "the launcher numbers the links"
    for one in FORWARDED:
        signal.signal(one, lambda *_: None)
    events = read_events(directory)
    first = first_link_of(links_of(events), number)
    note_ends(directory, events, number, first=first)
    events = read_events(directory)
    attempts = attempts_of(events, first_link=first)
    code = exit_code_if_over(directory, number, attempts, links_of(events))
    if code is not None:
        return code
    take_over(directory)
    before = sum(attempt.link == number for attempt in attempts)
    code = subprocess.run(command).returncode
    code = 128 - code if code < 0 else code
    events = read_events(directory)
    attempts = attempts_of(events, first_link=first)
    mine = [attempt for attempt in attempts if attempt.link == number][before:]
    if code == ExitCode.LEASE:
        if not mine:
            _record_end(directory, number, exit_code=code, reason="", ran=False)
        return code
    if not any(attempt.ended for attempt in mine):
        if not mine:
            mine = [LinkAttempt(number)]
            attempts += mine
        mine[-1].ended = _note_own_end(directory, number, code)
    with suppress(OSError):  # a full disk: the next link finds no mark, and does what is left
        mark_done(directory, mine[-1].ended.get("exit_code"))
    exit_code_if_over(directory, number, attempts, links_of(events))
    return code


def mark_done(directory: Path, code: int | None) -> None:
    """Mark a run as done whose link ended with 0: a recipe does so itself, any other .sub file cannot."""
    if code == ExitCode.DONE and not (directory / DONE).exists():
        write_whole(directory / DONE, "exit code 0\n")


def first_link_of(links: Sequence[LinkRecord], number: int) -> int:
    """Return the first link of the launch that this one belongs to: what an earlier launch did is forgiven."""
    mine = next((link for link in links if link.number == number), None)
    return number if mine is None else int(mine.submitted.get("first_link", number))


def exit_code_if_over(
    directory: Path, number: int, attempts: Sequence[LinkAttempt], links: Sequence[LinkRecord]
) -> int | None:
    """Return None where the chain goes on; else the exit code of a link with nothing to do, and the rest is cancelled.

    `attempts`: of this launch. A disk that takes no mark stops the chain all the same.
    """
    code: int | None = None
    if (directory / DONE).exists():
        print(f"baton: run {directory.name} is done")
        code = int(ExitCode.DONE)
    elif (directory / STOP).exists():
        print(f"baton: run {directory.name} was {(directory / STOP).read_text(encoding='utf-8').strip()}")
        code = int(ExitCode.CONTINUE)
    elif (closed := _closed_gate()) is not None:
        print(f"baton: {closed}")
        _record_end(directory, number, exit_code=int(ExitCode.CONTINUE), reason=closed, ran=False)
        code = int(ExitCode.CONTINUE)
    elif (reason := _failure(directory, attempts, links)) is not None:
        print(f"baton: the chain stops: {reason}")
        code = int(ExitCode.CONTINUE)
    if code is not None:
        _cancel_rest(links, number)
    with suppress(OSError):  # the log may be on the disk that is full
        sys.stdout.flush()
    return code


def _failure(directory: Path, attempts: Sequence[LinkAttempt], links: Sequence[LinkRecord]) -> str | None:
    """Return why no link is to be tried any more, in words; it is marked, where the disk takes the mark."""
    if (directory / FAILED).exists():
        return (directory / FAILED).read_text(encoding="utf-8").strip()
    reason = reason_to_stop(outcomes_of(directory, attempts, links))
    if reason is not None:
        with suppress(OSError):
            write_whole(directory / FAILED, reason + "\n")
    return reason


def _closed_gate() -> str | None:
    """Return why the stage of a pipeline must not begin, in words; None where nothing is in its way."""
    before = os.environ.get(ENV_GATE)
    if not before or (runs_root() / before / DONE).exists():
        return None
    return f"the stage before, run {before}, is not done: see ./launch.sh status {before}"


def _cancel_rest(links: Sequence[LinkRecord], number: int) -> None:
    """Take the later links out of the queue. Where a job may not do that, they end by themselves in seconds."""
    later = [link for link in links if link.number > number and not link.started]
    problem = cancel_jobs(slurm_jobs(later), options=["--quiet", "--state=PENDING"])
    if problem:
        print(f"baton: the links that wait are not cancelled, and end as soon as they start: {problem}")


def note_ends(directory: Path, events: Sequence[Event], number: int, *, first: int) -> None:
    """Write down how earlier links of this launch ended, and this one where SLURM started it again.

    Of the link before that died of a signal, SLURM may know more by now than the link itself could write.
    """
    for link in links_of(events):
        if not first <= link.number < number or link.job_id is None:
            continue
        if not link.ended:
            facts = end_of_job(link.job_id, has_started=bool(link.started))
            if facts is not None:
                _record_end(directory, link.number, **facts)
        elif link.number == number - 1 and _is_unexplained(link.ended):
            facts = end_of_job(link.job_id, has_started=bool(link.started))
            if facts is not None and facts["slurm_state"] in STATES:
                _record_end(directory, link.number, **facts, corrected=True)
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        attempts = attempts_of(events, first_link=number)
        if attempts and attempts[-1].link == number and not attempts[-1].ended:
            _record_end(directory, number, **_facts("REQUEUED", None))


def _is_unexplained(ended: Mapping[str, Any]) -> bool:
    """Tell whether a launcher noted a signal as the end, and knew no more."""
    return "token" not in ended and "slurm_state" not in ended and (ended.get("exit_code") or 0) < 0


def _record_end(directory: Path, number: int, **facts: Any) -> None:
    """Write an end that the link did not tell itself. A full disk is no reason to stay: what is to be done is done."""
    try:
        record_link(directory, event="ended", link=number, step=None, **facts)
    except OSError as error:
        print(f"baton: the end of link {number} cannot be written down: {error}")


def end_of_job(job: str, *, has_started: bool) -> Mapping[str, Any] | None:
    """Return what SLURM remembers of the end of a job, as an event's facts; None where it is not over."""
    facts = job_facts(job) or {}  # the link after it runs, so it is over, whatever SLURM still knows
    state = facts.get("JobState", "")
    if state and state not in OVER:
        return None
    code = int(facts.get("ExitCode", "0:0").split(":")[0]) or None
    if state == "CANCELLED" and not has_started:
        return {**_facts(state, code), "ran": False}
    return _facts(state, code)


def _facts(state: str, code: int | None) -> dict[str, Any]:
    """Return `exit_code`, `reason` and `slurm_state` of an event `ended`."""
    known = {"NODE_FAIL": ExitCode.NODE, "BOOT_FAIL": ExitCode.NODE, "OUT_OF_MEMORY": ExitCode.OUT_OF_MEMORY}
    if state in STATES:
        code = int(known[state]) if state in known else None
    return {"exit_code": code, "reason": STATES.get(state, describe_exit(code)), "slurm_state": state or None}


def _note_own_end(directory: Path, number: int, code: int) -> dict[str, Any]:
    """Write the exit code, all that is known where the ranks died without a word; return the event's facts."""
    signed = 128 - code if 128 < code <= 192 else code
    facts = {"exit_code": signed, "reason": "" if signed == ExitCode.CONTINUE else describe_exit(signed)}
    _record_end(directory, number, **facts)
    return facts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
