"""What the links of a chain have achieved, from its ledger, and whether another one follows."""

from pathlib import Path

import pytest

from core.rundir.ledger import attempts_of, links_of, read_events
from core.rundir.whole_files import append_record
from launchers.chain.stop_rule import LinkOutcome, outcomes_of, reason_to_stop
from tests.launchers.conftest import write_ledger

Events = list[dict[str, object]]


def started(link: int, step: int) -> dict[str, object]:
    return {"event": "started", "link": link, "step": step}


def ended(link: int, code: int | None, step: int | None = None, **facts: object) -> dict[str, object]:
    return {"event": "ended", "link": link, "exit_code": code, "step": step, **facts}


def outcomes(run: Path, *, first_link: int = 1) -> list[LinkOutcome]:
    events = read_events(run)
    return outcomes_of(run, attempts_of(events, first_link=first_link), links_of(events))


LOST = {"slurm_state": "NODE_FAIL", "reason": "SLURM lost its node"}


@pytest.mark.parametrize(
    "events, words",
    [
        ([started(1, 0), ended(1, 75, 50, token=1), started(2, 50), ended(2, 1, 70, token=2)], None),
        # killed twice at the start, nobody told a step
        ([ended(1, -9), ended(2, -9)], "links 1 and 2 made no new step; link 2: killed by signal 9"),
        # crashes at the same step, though a checkpoint was made on the way
        (
            [started(1, 0), ended(1, 1, 70, token=1), started(2, 50), ended(2, 1, 70, token=2)],
            "links 1 and 2 failed alike at step 70: crashed (a bug)",
        ),
        # a lost node and a preemption are nobody's fault, three times for nothing is enough
        ([started(1, 0), ended(1, 90, **LOST), started(2, 0), ended(2, 90, **LOST)], None),
        (
            [started(k, 0) if half else ended(k, 90, **LOST) for k in (1, 2, 3) for half in (True, False)],
            "links 1, 2 and 3 made no new step; link 3: the node failed: SLURM lost its node",
        ),
        # one link that SLURM requeues again and again
        (
            [
                event
                for _ in range(3)
                for event in (started(1, 0), ended(1, None, slurm_state="REQUEUED", reason="preempted"))
            ],
            "link 1, started 3 times, made no new step; link 1: preempted",
        ),
        # cancelled in the queue: never tried
        ([started(1, 0), ended(1, 1, 5, token=1), ended(2, None, ran=False), ended(3, None, ran=False)], None),
    ],
)
def test_the_reason_to_stop_from_a_ledger(tmp_path: Path, events: Events, words: str | None) -> None:
    run = write_ledger(tmp_path / "run", *events)
    assert reason_to_stop(outcomes(run)) == words


def test_a_requeued_link_has_an_attempt_for_each_start(tmp_path: Path) -> None:
    run = write_ledger(
        tmp_path / "run",
        started(1, 0),
        ended(1, None, slurm_state="REQUEUED"),
        started(1, 40),
        ended(1, 75, 90, token=2),
    )
    assert [(a.started["step"], a.ended.get("exit_code")) for a in attempts_of(read_events(run))] == [
        (0, None),
        (40, 75),
    ]
    assert [(o.resume_from, o.resume_at) for o in outcomes(run)] == [(0, 40), (40, 90)]


def test_what_a_job_says_that_lost_the_run_does_not_count(tmp_path: Path) -> None:
    run = write_ledger(tmp_path / "run", started(1, 0), started(2, 0))
    append_record(run / "chain.jsonl", ended(2, 0, 99, token=1))  # a cut-off node, after the lease went on to token 2
    first, second = attempts_of(read_events(run))
    assert (first.ended, second.ended) == ({}, {})


def test_what_came_before_a_new_launch_is_forgiven(tmp_path: Path) -> None:
    run = write_ledger(tmp_path / "run", ended(1, -9), ended(2, -9), ended(3, -9))
    assert len(attempts_of(read_events(run), first_link=3)) == 1
    assert reason_to_stop(outcomes(run, first_link=3)) is None


@pytest.mark.parametrize(
    "steps, progress, goes_on",
    [
        ((30, 42, 50), [True, True, True], True),
        ((30, 30, 50), [True, False, True], True),
        ((30, 30, 30), [True, False, False], False),
        ((30, None, 31), [True, False, True], True),  # one was killed, and could not tell
    ],
)
def test_a_preparation_goes_on_as_long_as_it_makes_pieces(
    tmp_path: Path, steps: tuple[int | None, ...], progress: list[bool], goes_on: bool
) -> None:
    """It has no checkpoints, so each link starts at 0, and tells how many pieces all of them have made."""
    events = [
        event
        for k, step in enumerate(steps, start=1)
        for event in (started(k, 0), ended(k, -9) if step is None else ended(k, 75, step, token=k))
    ]
    run = write_ledger(tmp_path / "run", *events)
    found = outcomes(run)
    assert [one.made_progress for one in found] == progress
    assert (reason_to_stop(found) is None) == goes_on


def test_pieces_of_an_earlier_launch_are_no_progress_of_this_one(tmp_path: Path) -> None:
    run = write_ledger(tmp_path / "run", *(e for k in (1, 2) for e in (started(k, 0), ended(k, 75, 30, token=k))))
    assert [one.made_progress for one in outcomes(run, first_link=2)] == [False]


def test_who_was_refused_says_nothing_of_the_run(tmp_path: Path) -> None:
    run = write_ledger(tmp_path / "run", started(1, 0), started(2, 0), ended(1, 92, 9, token=1), ended(3, 92))
    found = outcomes(run)
    assert [(one.link, one.exit_code) for one in found] == [(2, None)]
    assert reason_to_stop(found) is None
