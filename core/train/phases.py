"""Where a rank is in its step, and for how long: read by the speed of the step, the straggler ratio and the watchdog.

    data      reads its micro-batches                     own time
    vote      adds up counts with the other ranks         waits for others
    forward   and
    backward  of its micro-batches                        own time
    reduce    the last backward, which adds up gradients  waits for others
    update    of the parameters
    log       records, looks after saves
    save      begins a checkpoint, or waits for one
    validate  one evaluation batch
    outside   anything else

All ranks go through the same phases in the same order, so that the number of phases entered tells who is behind.
"""

import time
from collections import deque
from collections.abc import Callable
from statistics import quantiles
from typing import Literal, NamedTuple

import torch

Phase = Literal["outside", "data", "vote", "forward", "backward", "reduce", "update", "log", "validate", "save"]

WINDOW = 200  # steps: long enough for batches of all lengths, short enough to notice a slower node
WARM_STEPS = 3  # the first steps of a process compile, allocate and fill queues


class Place(NamedTuple):
    """One moment, whole: the watchdog's thread looks at it while the main thread moves on."""

    phase: Phase
    step: int  # the step at work, or the last one done
    entered: int  # phases entered before this one
    since: float  # seconds of the clock


class Phases:
    """The place of this rank, and the seconds of its phases."""

    def __init__(self, device: torch.device | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.place = Place("outside", 0, 0, clock())
        self._seconds: dict[str, float] = {}
        self._own_s = 0.0
        self._spans = _DeviceSpans() if device is not None and device.type == "cuda" else None
        self._steps_s: deque[float] = deque(maxlen=WINDOW)
        self._num_steps = 0
        self.train_s = 0.0  # of all steps of this process

    def enter(self, phase: Phase, *, step: int | None = None) -> None:
        """The phase before ends here."""
        before, now = self.place, self._clock()
        self._seconds[before.phase] = self._seconds.get(before.phase, 0.0) + now - before.since
        self.place = Place(phase, before.step if step is None else step, before.entered + 1, now)
        if self._spans is not None:
            self._spans.observe(phase)

    def begin_step(self, number: int) -> None:
        """Step `number` (from 1) begins with its data; what came since the last step belongs to none."""
        self.enter("data", step=number)
        self._seconds.clear()

    def end_step(self) -> "StepTimes":
        """The seconds of the step that ends here; its record is the next phase."""
        self.enter("log")
        seconds, self._seconds = self._seconds, {}
        self._num_steps += 1
        total_s = sum(seconds.values())
        self.train_s += total_s
        if self._num_steps > 1:
            self._steps_s.append(total_s)
            self._own_s += seconds["data"]
            if self._spans is None:
                self._own_s += seconds.get("forward", 0.0) + seconds.get("backward", 0.0)
        elif self._spans is not None:
            self._spans.take_s()
        return StepTimes(total_s, wait_s=seconds["data"] + seconds["vote"])

    def take_own_s(self) -> float:
        """Seconds that this rank itself took since the last call: its data, and computing until it met the others.

        On a GPU the computing is timed by the device, so this waits for it.
        """
        own_s, self._own_s = self._own_s, 0.0
        return own_s if self._spans is None else own_s + self._spans.take_s()

    def longest_usual_step_s(self) -> float | None:
        """The 99th percentile of the last steps' times; None while the first ones are under way."""
        steps_s = list(self._steps_s)
        return quantiles(steps_s, n=100, method="inclusive")[98] if len(steps_s) >= WARM_STEPS else None


class StepTimes(NamedTuple):
    """Wall seconds of a step, and of these what was spent on waiting for data, one's own or another rank's."""

    total_s: float
    wait_s: float


class _DeviceSpans:
    """Device time from the first forward of each step to the backward that meets the other ranks."""

    def __init__(self) -> None:
        self._begun: torch.cuda.Event | None = None
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def observe(self, phase: Phase) -> None:
        if phase == "forward" and self._begun is None:
            self._begun = self._now()
        elif phase == "reduce" and self._begun is not None:
            self._spans.append((self._begun, self._now()))
            self._begun = None

    def take_s(self) -> float:
        spans, self._spans = self._spans, []
        for _, end in spans[-1:]:
            end.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
