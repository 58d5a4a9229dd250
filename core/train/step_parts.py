"""The last steps of a rank in parts, and what is usual of each: for the records, train.log and the benchmarks.

    data_wait  reads its micro-batches, and waits until all ranks have theirs
    move       hands them to the device
    forward    of its micro-batches
    backward   of them, and adding up the gradients
    update     of the parameters
    step       everything from the end of the step before, without validation and checkpoints; its record too

On a GPU forward, backward, update and step are times of the device, whose work the host does not wait for.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import quantiles
from typing import Annotated, Any, Literal

from pydantic import Field

from core.config import section

PARTS: Mapping[str, tuple[str, ...]] = {
    "data_wait": ("data", "vote"),
    "move": ("move",),
    "forward": ("forward",),
    "backward": ("backward", "reduce"),
    "update": ("update",),
}
STEP = "step"
ON_DEVICE = ("forward", "backward", "reduce", "update")
BETWEEN_STEPS = ("save", "validate", "outside")  # phases that belong to no step


@section
class TimingConfig:
    """How steps are measured, and what the time to the end of the run is told from.

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
        """A step, as the seconds of its phases on the host, and on a GPU those of the device."""
        phases = {phase: seconds for phase, seconds in host_s.items() if phase not in BETWEEN_STEPS}
        step_s = sum(phases.values())
        if device_s is not None:
            phases |= {phase: device_s.get(phase, 0.0) for phase in ON_DEVICE}
            step_s = sum(seconds for phase, seconds in device_s.items() if phase not in BETWEEN_STEPS)
        parts = {part: sum(phases.get(phase, 0.0) for phase in names) for part, names in PARTS.items()}
        self._steps.append({**parts, STEP: step_s})

    def latest_s(self) -> dict[str, float]:
        """The parts of the last step; empty before there is one."""
        return dict(self._steps[-1]) if self._steps else {}

    def quantiles_s(self) -> dict[str, float]:
        """`step_s_p50`, `step_s_p90` and the same of every part; empty before two steps are measured."""
        if len(self._steps) < 2:
            return {}
        found: dict[str, float] = {}
        for part in (*PARTS, STEP):
            deciles = quantiles([step[part] for step in self._steps], n=10, method="inclusive")
            found |= {f"{part}_s_p50": deciles[4], f"{part}_s_p90": deciles[8]}
        return found


Mark = tuple[str, Any]  # a phase, and the event with which the device began it


class DeviceMarks:
    """When the device began each phase. Nothing waits for it until `seconds` are asked for."""

    def __init__(self, now: Callable[[], Any] | None = None) -> None:
        self._now = now or _event
        self._marks: list[Mark] = []

    def observe(self, phase: str) -> None:
        self._marks.append((phase, self._now()))

    def take_step(self) -> list[Mark]:
        """Of the step that ends with the phase observed last; that mark begins the next step too."""
        marks, self._marks = self._marks, self._marks[-1:]
        return marks

    @staticmethod
    def seconds(marks: Sequence[Mark]) -> dict[str, float]:
        """By phase; waits until the device has come to the last mark."""
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
