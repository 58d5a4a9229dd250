"""Phases of a step with a clock that passes only when told; and who of the ranks holds the others up."""

import logging

import pytest

from core.train.phases import WARM_STEPS, Phases
from core.train.straggler import Straggler


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


SECONDS = {"data": 0.5, "vote": 0.25, "forward": 1.0, "backward": 2.0, "reduce": 4.0, "update": 8.0, "log": 16.0}


def step(phases: Phases, clock: Clock, number: int, seconds: dict[str, float]) -> tuple[float, float]:
    phases.begin_step(number)
    for phase, passed in seconds.items():
        if phase != "data":
            phases.enter(phase)  # type: ignore[arg-type]
        clock.now += passed
    return phases.end_step()


def test_times_of_a_step() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    clock.now += 100.0  # before the first step
    assert step(phases, clock, 1, SECONDS) == (31.75, 0.75)
    clock.now += 1000.0
    phases.enter("validate")
    clock.now += 1000.0
    assert step(phases, clock, 2, SECONDS) == (31.75, 0.75), "what lies between steps belongs to none"
    assert phases.train_s == 2 * 31.75


def test_own_time_is_what_does_not_wait_for_others() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    step(phases, clock, 1, {name: 60.0 for name in SECONDS})
    assert phases.take_own_s() == 0.0, "the first step compiles and fills queues"
    for number in (2, 3):
        step(phases, clock, number, SECONDS)
    assert phases.take_own_s() == 2 * 3.5
    assert phases.take_own_s() == 0.0


def test_place_tells_who_is_behind() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    step(phases, clock, 1, SECONDS)
    ahead = phases.place
    assert (ahead.phase, ahead.step, ahead.since) == ("log", 1, 31.75)
    phases.begin_step(2)
    assert phases.place[:2] == ("data", 2) and phases.place.entered == ahead.entered + 1


def test_the_usual_longest_step_needs_a_few() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    for number in range(WARM_STEPS):
        step(phases, clock, number, SECONDS)
        assert phases.longest_usual_step_s() is None, "the first one does not count"
    for number in range(200):
        step(phases, clock, number, {**SECONDS, "log": float(number)})
    assert phases.longest_usual_step_s() == pytest.approx(15.75 + 197.01)  # numpy.percentile(range(200), 99)


def test_straggler_is_said_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    straggler = Straggler(warn_ratio=1.3)
    said = []
    with caplog.at_level(logging.WARNING):
        for own_s in ([1.0, 1.2, 1.1], [1.0, 1.0, 4.0], [1.0, 1.0, 4.0], [1.0, 1.0, 1.0], [4.0, 1.0, 1.0]):
            found = straggler.observe(own_s, hosts=["a", "b", "c"])
            said.append(len(caplog.records))
    assert found == {"straggler_ratio": 2.0, "straggler_rank": 0}
    assert said == [0, 1, 1, 1, 2]
    assert caplog.messages[0] == "rank 2 on c holds the others up: it takes 2.00 x the mean of all ranks"


def test_a_process_alone_has_no_straggler() -> None:
    assert Straggler(warn_ratio=1.0).observe([3.0], hosts=["a"]) == {}
    assert Straggler(warn_ratio=1.0).observe([0.0, 0.0], hosts=["a", "b"]) == {}
