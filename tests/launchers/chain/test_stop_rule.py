"""When a chain goes on and when it stops."""

import pytest

from core.rundir.exit_codes import ExitCode
from launchers.chain.stop_rule import LinkOutcome, reason_to_stop


def outcome(link: int, code: int | None, start: int, end: int, last: int | None = None) -> LinkOutcome:
    return LinkOutcome(link, code, f"words of {link}", resume_from=start, resume_at=end, last_step=last)


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        [outcome(1, 75, 0, 100)],
        [outcome(1, 75, 0, 0)],  # once may be bad luck
        [outcome(1, 1, 0, 100, 150), outcome(2, 1, 100, 200, 250)],  # crashes, but elsewhere each time
        [outcome(1, 75, 0, 0), outcome(2, 75, 0, 100), outcome(3, 90, 100, 100)],
        [outcome(1, -9, 0, 50), outcome(2, -9, 50, 90)],  # killed twice: nothing known of the last step
        [outcome(1, 75, 0, 50, 50), outcome(2, 75, 50, 90, 90)],
    ],
)
def test_goes_on(outcomes: list[LinkOutcome]) -> None:
    assert reason_to_stop(outcomes) is None


@pytest.mark.parametrize("code", [85, 87, 88, 89, 92])
def test_failures_that_would_only_repeat_stop_at_once(code: int) -> None:
    assert reason_to_stop([outcome(1, 75, 0, 100), outcome(2, code, 100, 200)]) == "link 2: words of 2"


@pytest.mark.parametrize("code", [int(ExitCode.CONTINUE), 1, 86, 90, 91, 93, -9, None])
def test_two_links_without_a_new_step_stop(code: int | None) -> None:
    reason = reason_to_stop([outcome(3, 1, 100, 100), outcome(4, code, 100, 100)])
    assert reason == "links 3 and 4 made no new step; link 4: words of 4"


def test_the_same_failure_at_the_same_step_stops() -> None:
    assert reason_to_stop([outcome(1, 1, 0, 100, 150), outcome(2, 1, 100, 100, 150)]) == (
        "links 1 and 2 failed alike at step 150: words of 2"
    )
    assert reason_to_stop([outcome(1, 1, 0, 100, 150), outcome(2, 91, 100, 100, 150)]) is None
