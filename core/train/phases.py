"""Where a rank is in its step, and for how long: read by the speed of the step, the straggler ratio and the watchdog.

    data      reads its micro-batches                     own time
    vote      adds up counts with the other ranks         waits for others
    move      hands a micro-batch to the device           own time
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

from core.train.step_parts import BETWEEN_STEPS, DeviceMarks, Mark, StepParts

Phase = Literal["outside", "data", "vote", "move", "forward", "backward", "reduce", "update", "log", "validate", "save"]

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

    def __init__(
        self, device: torch.device | None = None, clock: Callable[[], float] = time.monotonic, *, window: int = WINDOW
    ) -> None:
        self._clock = clock
        self.place = Place("outside", 0, 0, clock())
        self.parts = StepParts(window)  # as of the last `take_own_s`
        self._seconds: dict[str, float] = {}
        self._marks = DeviceMarks() if device is not None and device.type == "cuda" else None
        self._untold: deque[_Measured] = deque(maxlen=WINDOW)
        self._follows_pause = False
        self._steps_s: deque[float] = deque(maxlen=WINDOW)
        self._num_steps = 0
        self.train_s = 0.0  # of all steps of this process

    def enter(self, phase: Phase, *, step: int | None = None) -> None:
        """The phase before ends here."""
        before, now = self.place, self._clock()
        self._seconds[before.phase] = self._seconds.get(before.phase, 0.0) + now - before.since
        self.place = Place(phase, before.step if step is None else step, before.entered + 1, now)
        if self._marks is not None:
            self._marks.observe(phase)

    def begin_step(self, number: int) -> None:
        """Step `number` (from 1) begins with its data. The record of the step before, where the host may have waited
        for the device, counts as a part of it. Validation and checkpoints do not; nor does waiting for the ranks that
        take longer over them.
        """
        self.enter("data", step=number)
        between = [self._seconds.pop(phase) for phase in BETWEEN_STEPS if phase in self._seconds]
        self._follows_pause = bool(between)

    def end_step(self) -> "StepTimes":
        """The seconds of the step that ends here; its record is the next phase."""
        self.enter("log")
        seconds, self._seconds = self._seconds, {}
        marks = None if self._marks is None else self._marks.take_step()
        if self._follows_pause:
            seconds["vote"] = 0.0
        self._num_steps += 1
        total_s = sum(seconds.values())
        self.train_s += total_s
        if self._num_steps > 1:
            self._steps_s.append(total_s)
            self._untold.append(_Measured(seconds, marks, follows_pause=self._follows_pause))
        return StepTimes(total_s, wait_s=seconds["data"] + seconds["vote"])

    def take_own_s(self) -> float:
        """Seconds that this rank itself took since the last call: its data, and computing until it met the others.

        On a GPU the computing is timed by the device, so this waits for it.
        """
        own_s = 0.0
        while self._untold:
            seconds, marks, follows_pause = self._untold.popleft()
            device_s = None if marks is None else DeviceMarks.seconds(marks)
            if device_s is not None and follows_pause:
                device_s.pop("vote", None)
            computing_s = seconds if device_s is None else device_s
            own_s += seconds["data"] + sum(computing_s.get(phase, 0.0) for phase in ("move", "forward", "backward"))
            self.parts.add(seconds, device_s)
        return own_s

    def longest_usual_step_s(self) -> float | None:
        """The 99th percentile of the last steps' times; None while the first ones are under way."""
        steps_s = list(self._steps_s)
        return quantiles(steps_s, n=100, method="inclusive")[98] if len(steps_s) >= WARM_STEPS else None


class _Measured(NamedTuple):
    """A step whose device times nobody has waited for yet."""

    seconds: dict[str, float]
    marks: list[Mark] | None
    follows_pause: bool


class StepTimes(NamedTuple):
    """Wall seconds of a step, and of these what was spent on waiting for data, one's own or another rank's."""

    total_s: float
    wait_s: float
