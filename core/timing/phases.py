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
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import quantiles
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field

from core.config.schema import section

Phase = Literal["outside", "data", "vote", "move", "forward", "backward", "reduce", "update", "log", "validate", "save"]

WINDOW = 200  # steps: long enough for batches of all lengths, short enough to notice a slower node
STEP = "step"
ON_DEVICE = ("forward", "backward", "reduce", "update")
BETWEEN_STEPS = ("save", "validate", "outside")  # phases that belong to no step
WARM_STEPS = 3  # the first steps of a process compile, allocate and fill queues
Mark = tuple[str, Any]  # a phase, and the event with which the device began it


class CurrentPhase(NamedTuple):
    """The phase that a rank is in, as one value: the watchdog's thread reads it while the main thread goes on."""

    phase: Phase
    step: int  # the step at work, or the last one done
    entered: int  # phases entered before this one
    since: float  # seconds of the clock


class Phases:
    """The current phase of this rank, and the seconds of its phases."""

    def __init__(
        self, device: torch.device | None = None, clock: Callable[[], float] = time.monotonic, *, window: int = WINDOW
    ) -> None:
        self._clock = clock
        self.current = CurrentPhase("outside", 0, 0, clock())
        self.parts = StepParts(window)  # as of the last `take_own_s`
        self._seconds: dict[str, float] = {}
        self._marks = DeviceMarks() if device is not None and device.type == "cuda" else None
        self._untold: deque[_Measured] = deque(maxlen=WINDOW)
        self._follows_pause = False
        self._steps_s: deque[float] = deque(maxlen=WINDOW)
        self._num_steps = 0
        self.train_s = 0.0  # of all steps of this process

    def enter(self, phase: Phase, *, step: int | None = None) -> None:
        """Begin a phase, which ends the one before."""
        before, now = self.current, self._clock()
        self._seconds[before.phase] = self._seconds.get(before.phase, 0.0) + now - before.since
        self.current = CurrentPhase(phase, before.step if step is None else step, before.entered + 1, now)
        if self._marks is not None:
            self._marks.observe(phase)

    def begin_step(self, number: int) -> None:
        """Begin step `number` (from 1) with its data. The record of the step before, where the host may have waited
        for the device, counts as a part of it. Validation and checkpoints do not; nor does waiting for slower ranks.
        """
        self.enter("data", step=number)
        between = [self._seconds.pop(phase) for phase in BETWEEN_STEPS if phase in self._seconds]
        self._follows_pause = bool(between)

    def end_step(self) -> "StepTimes":
        """Return the seconds of the step that ends here; its record is the next phase."""
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
        """Return the seconds that this rank took since the last call: its data, and computing until it met the others.

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
        """Return the 99th percentile of the last steps' times; None while the first ones are under way."""
        steps_s = list(self._steps_s)
        return quantiles(steps_s, n=100, method="inclusive")[98] if len(steps_s) >= WARM_STEPS else None


class _Measured(NamedTuple):
    """A step whose device times nobody has waited for yet."""

    seconds: dict[str, float]
    marks: list[Mark] | None
    follows_pause: bool


class StepTimes(NamedTuple):
    """The wall seconds of a step, and of these what was spent on waiting for data, one's own or another rank's."""

    total_s: float
    wait_s: float


PARTS: Mapping[str, tuple[str, ...]] = {
    "data_wait": ("data", "vote"),
    "move": ("move",),
    "forward": ("forward",),
    "backward": ("backward", "reduce"),
    "update": ("update",),
}


@section
class TimingConfig:
    """Settings of how steps are measured, and what the time to the end of the run is told from.

    `window`: the last steps whose median and 90th percentile are told. `rank_scope: all`: train.log has a line a rank.
    `eta_mode: global_max` counts with the slowest rank's mean step, `rank0` with that of rank 0; none is told before
    `eta_min_samples` steps.
    """

    window: Annotated[int, Field(ge=2)] = 100
    rank_scope: Literal["rank0", "all"] = "rank0"
    eta_mode: Literal["rank0", "global_max"] = "rank0"
    eta_min_samples: Annotated[int, Field(ge=1)] = 1


class StepParts:
    """The parts of the last `window` steps, in seconds."""

    def __init__(self, window: int) -> None:
        self._steps: deque[Mapping[str, float]] = deque(maxlen=window)

    def add(self, host_s: Mapping[str, float], device_s: Mapping[str, float] | None) -> None:
        """Add a step, as the seconds of its phases on the host, and on a GPU those of the device."""
        phases = {phase: seconds for phase, seconds in host_s.items() if phase not in BETWEEN_STEPS}
        step_s = sum(phases.values())
        if device_s is not None:
            phases |= {phase: device_s.get(phase, 0.0) for phase in ON_DEVICE}
            step_s = sum(seconds for phase, seconds in device_s.items() if phase not in BETWEEN_STEPS)
        parts = {part: sum(phases.get(phase, 0.0) for phase in names) for part, names in PARTS.items()}
        self._steps.append({**parts, STEP: step_s})

    def latest_s(self) -> dict[str, float]:
        """Return the parts of the last step; empty before there is one."""
        return dict(self._steps[-1]) if self._steps else {}

    def quantiles_s(self) -> dict[str, float]:
        """Return `step_s_p50`, `step_s_p90` and the same of every part; empty before two steps are measured."""
        if len(self._steps) < 2:
            return {}
        found: dict[str, float] = {}
        for part in (*PARTS, STEP):
            deciles = quantiles([step[part] for step in self._steps], n=10, method="inclusive")
            found |= {f"{part}_s_p50": deciles[4], f"{part}_s_p90": deciles[8]}
        return found


class DeviceMarks:
    """The events with which the device began each phase. Nothing waits for them until `seconds` are asked for."""

    def __init__(self, now: Callable[[], Any] | None = None) -> None:
        self._now = now or _event
        self._marks: list[Mark] = []

    def observe(self, phase: str) -> None:
        self._marks.append((phase, self._now()))

    def take_step(self) -> list[Mark]:
        """Return the marks of the step that ends with the phase observed last; that mark begins the next step too."""
        marks, self._marks = self._marks, self._marks[-1:]
        return marks

    @staticmethod
    def seconds(marks: Sequence[Mark]) -> dict[str, float]:
        """Return the seconds of each phase; waits until the device has come to the last mark."""
        found: dict[str, float] = {}
        marks[-1][1].synchronize()
        for (phase, begin), (_, end) in pairwise(marks):
            found[phase] = found.get(phase, 0.0) + begin.elapsed_time(end) / 1000
        return found


def _event() -> Any:
    import torch  # who only reads timings does not need it

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
