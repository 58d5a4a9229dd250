"""Phases of a step with a clock that passes only when told; and who of the ranks holds the others up."""

import logging

import pytest

from core.timing.phases import WARM_STEPS, DeviceMarks, Phases
from core.timing.straggler import Straggler


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


SECONDS = {
    "data": 0.5,
    "vote": 0.25,
    "move": 0.125,
    "forward": 1.0,
    "backward": 2.0,
    "reduce": 4.0,
    "update": 8.0,
    "log": 16.0,
}


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
    assert step(phases, clock, 1, SECONDS) == (31.625, 0.5), "nor waiting for ranks that take longer to begin"
    for phase in ("validate", "outside", "save"):
        phases.enter(phase)  # type: ignore[arg-type]
        clock.now += 1000.0
    assert step(phases, clock, 2, SECONDS) == (31.625, 0.5), "what lies between steps belongs to none"
    clock.now += 100.0
    assert step(phases, clock, 3, SECONDS) == (131.875, 0.75), "but the record of a step, where a GPU is waited for"
    assert phases.train_s == 2 * 31.625 + 131.875


def test_parts_of_the_last_steps() -> None:
    clock = Clock()
    phases = Phases(clock=clock, window=4)
    for number in range(10):
        step(phases, clock, number, {**SECONDS, "forward": float(number)})
    assert phases.parts.quantiles_s() == {}, "nothing before the device is waited for"
    phases.take_own_s()
    found = phases.parts.quantiles_s()  # of forward: 6, 7, 8, 9
    assert (found["forward_s_p50"], found["forward_s_p90"]) == (7.5, pytest.approx(8.7))
    assert (found["data_wait_s_p50"], found["move_s_p90"], found["backward_s_p50"]) == (0.75, 0.125, 6.0)
    assert found["step_s_p50"] == 30.875 + 7.5
    assert phases.parts.latest_s() == {
        "data_wait": 0.75, "move": 0.125, "forward": 9.0, "backward": 6.0, "update": 8.0, "step": 39.875
    }  # fmt: skip


class DeviceEvent:
    """Of a device that takes twice as long as the host."""

    def __init__(self, clock: Clock) -> None:
        self.at = clock.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "DeviceEvent") -> float:
        return 2000.0 * (end.at - self.at)


def test_on_a_device_its_own_time_counts() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    phases._marks = DeviceMarks(now=lambda: DeviceEvent(clock))
    for number in range(3):
        step(phases, clock, number, SECONDS)
    assert phases.take_own_s() == 2 * (0.5 + 2 * (0.125 + 1.0 + 2.0))
    expected = {"data_wait": 0.75, "move": 0.125, "forward": 2.0, "backward": 12.0, "update": 16.0, "step": 2 * 31.875}
    assert phases.parts.latest_s() == expected
    phases.enter("validate")
    clock.now += 1000.0
    step(phases, clock, 3, SECONDS)
    phases.take_own_s()
    assert phases.parts.latest_s() == expected | {"data_wait": 0.5, "step": 2 * 31.625}


def test_own_time_is_what_does_not_wait_for_others() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    step(phases, clock, 1, {name: 60.0 for name in SECONDS})
    assert phases.take_own_s() == 0.0, "the first step compiles and fills queues"
    for number in (2, 3):
        step(phases, clock, number, SECONDS)
    assert phases.take_own_s() == 2 * 3.625
    assert phases.take_own_s() == 0.0


def test_place_tells_who_is_behind() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    step(phases, clock, 1, SECONDS)
    ahead = phases.current
    assert (ahead.phase, ahead.step, ahead.since) == ("log", 1, 31.875)
    phases.begin_step(2)
    assert phases.current[:2] == ("data", 2) and phases.current.entered == ahead.entered + 1


def test_the_usual_longest_step_needs_a_few() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    for number in range(WARM_STEPS):
        step(phases, clock, number, SECONDS)
        assert phases.longest_usual_step_s() is None, "the first one does not count"
    for number in range(200):
        step(phases, clock, number, {**SECONDS, "log": float(number)})
    assert phases.longest_usual_step_s() == pytest.approx(15.875 + 197.01)  # numpy.percentile(range(200), 99)


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
