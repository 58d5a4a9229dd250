"""Who hung, from what the ranks told; and why a rank that lost another one failed."""

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from core.job.errors import DataError
from core.job.rank_files import RankFile, RankState
from core.job.watchdog import Watchdog, WatchdogConfig, describe_hang
from core.rundir.exit_codes import ExitCode
from core.timing.phases import Phases


def told(rank: int, *, entered: int, is_stuck: bool = True, **others: object) -> RankState:
    state = RankState(
        rank=rank, token=1, host="elsewhere", pid=100 + rank, started=0.0, phase="reduce", step=7, entered=entered,
        since_s=118.0, seen=time.time() - 5, is_stuck=is_stuck,
    )  # fmt: skip
    return replace(state, **others)  # type: ignore[arg-type]


def test_who_is_behind_hung() -> None:
    stuck = [told(0, entered=40), told(1, entered=38, phase="data"), told(2, entered=40)]
    assert describe_hang(stuck, [], world_size=3) == (
        "rank 1 (elsewhere, process 101) hung in data of step 7 for 118 s; 2 of 3 ranks wait in reduce of step 7"
    )


def test_who_is_silent_hung_wherever_the_others_are() -> None:
    stuck, silent = [told(0, entered=40), told(1, entered=38)], [told(2, entered=39, is_stuck=False)]
    assert describe_hang(stuck, silent, world_size=3) == (
        "rank 2 (elsewhere, process 102) hung in reduce of step 7: last seen 5 s ago; "
        "2 of 3 ranks wait in reduce of step 7"
    )


def test_who_failed_is_no_riddle() -> None:
    failed = told(1, entered=38, is_stuck=False, exit_code=89, reason="DataError: no data")
    words = describe_hang([told(0, entered=40)], [failed], world_size=2)
    assert words.startswith("rank 1 (elsewhere, process 101) failed in reduce of step 7: DataError: no data; 1 of 2")


def test_many_ranks_are_counted() -> None:
    stuck = [told(rank, entered=40) for rank in range(20)]
    words = describe_hang(stuck, [], world_size=20)
    assert words.count("hung in") == 8 and words.endswith("; 12 more")


def test_ranks_that_told_nothing_are_named() -> None:
    assert describe_hang([told(0, entered=4)], [], world_size=3).startswith("ranks [1, 2] of 3 told nothing")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def allowed(config: WatchdogConfig, tmp_path: Path, *, step_s: float) -> dict[str, float | None]:
    clock = Clock()
    phases = Phases(clock=clock)
    file = RankFile(tmp_path, phases, rank=0, token=1)
    watchdog = Watchdog(config, phases, file, world_size=1, on_hang=lambda reason: None)
    found = {"first steps": watchdog._allowed_s("forward")}
    for number in range(5):
        phases.begin_step(number)
        phases.enter("vote")
        clock.now += step_s
        phases.end_step()
    return found | {phase: watchdog._allowed_s(phase) for phase in ("forward", "vote", "validate", "save", "outside")}


@pytest.mark.parametrize("step_s, named_s", [(1.0, 120.0), (50.0, 150.0), (300.0, 900.0)])
def test_a_hang_is_named_within_three_steps_or_two_minutes(step_s: float, named_s: float, tmp_path: Path) -> None:
    limits = allowed(WatchdogConfig(), tmp_path, step_s=step_s)
    answer_s = 10.0
    assert limits["forward"] == limits["vote"] == named_s - answer_s
    assert limits["validate"] == max(480.0, named_s) and limits["save"] == 3600.0 and limits["outside"] is None
    assert limits["first steps"] == 480.0


def test_a_limit_that_is_given_holds(tmp_path: Path) -> None:
    limits = allowed(WatchdogConfig(limit_s=8.0), tmp_path, step_s=1.0)
    assert limits["forward"] == 6.0 and limits["validate"] == limits["first steps"] == 480.0


def failed_together(directory: Path, *errors: BaseException) -> list[RankFile]:
    """Files of ranks that failed one after the other."""
    files = [RankFile(directory, Phases(), rank=rank, token=3) for rank in range(len(errors))]
    for file in files:
        file.__enter__()
    for file, error in reversed(list(zip(files, errors, strict=True))):
        time.sleep(0.01)
        file.__exit__(type(error), error, None)
    return files


def test_the_first_failure_is_the_cause(tmp_path: Path) -> None:
    lost = RuntimeError("Connection closed by peer")
    here = ExitCode.BUG, "RuntimeError: Connection closed by peer"
    first, _, last = failed_together(tmp_path / "data", lost, lost, DataError("no data\nreally"))
    assert first.root_cause(*here) == (ExitCode.DATA, "rank 2: DataError: no data")
    first, _, last = failed_together(tmp_path / "bug", lost, lost, KeyError("x"))
    assert first.root_cause(*here) == (ExitCode.BUG, "rank 2: KeyError: 'x'")
    assert last.root_cause(ExitCode.BUG, "KeyError: 'x'") == (ExitCode.BUG, "KeyError: 'x'")


def test_a_file_of_another_job_tells_nothing(tmp_path: Path) -> None:
    with RankFile(tmp_path, Phases(), rank=1, token=2), RankFile(tmp_path, Phases(), rank=0, token=3) as mine:
        assert mine.read_others() == []
    assert not tmp_path.exists(), "nothing is left of a good end"


def test_a_long_reason_leaves_the_file_readable(tmp_path: Path) -> None:
    with RankFile(tmp_path, Phases(), rank=0, token=3) as mine:
        other = RankFile(tmp_path, Phases(), rank=1, token=3)
        other.__enter__()
        other.__exit__(ValueError, ValueError("\x00\u20ac" * 9000), None)
        (state,) = mine.read_others()
        assert state.exit_code == ExitCode.CONFIG and state.host == socket.gethostname()
        assert state.pid == os.getpid() and state.condition() == psutil.Process().status()
