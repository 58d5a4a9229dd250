"""When the run will be finished."""

from collections import deque
from math import lcm
from statistics import fmean

from core.timing.phases import WINDOW


class Eta:
    """The time to the last step, with the validations and checkpoints on the way.

    `saves_validated`: each validation ends in a checkpoint, besides those of every `save_every` steps.
    The first step of a process is left out of the mean: it compiles, allocates and fills queues.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        validate_every: int | None = None,
        save_every: int | None = None,
        saves_validated: bool = False,
        min_samples: int = 1,
    ) -> None:
        self._total_steps, self._min_samples = total_steps, min_samples
        self._validate_every, self._save_every = validate_every, save_every
        self._saves_validated = saves_validated
        self._steps_s: deque[float] = deque(maxlen=WINDOW)
        self._events_s: dict[str, deque[float]] = {name: deque(maxlen=5) for name in ("validation", "checkpoint")}
        self._is_warm = False

    def add_step(self, seconds: float) -> None:
        """Add the wall time of one step, without validation and checkpoint."""
        if self._is_warm:
            self._steps_s.append(seconds)
        self._is_warm = True

    def add_validation(self, seconds: float) -> None:
        self._events_s["validation"].append(seconds)

    def add_checkpoint(self, seconds: float) -> None:
        """Add how long training stood still for a checkpoint."""
        self._events_s["checkpoint"].append(seconds)

    @property
    def num_samples(self) -> int:
        return len(self._steps_s)

    def step_s(self) -> float | None:
        """Return the mean step; None before `min_samples` are measured."""
        return fmean(self._steps_s) if len(self._steps_s) >= self._min_samples else None

    def remaining_s(self, step: int, *, step_s: float | None = None) -> float | None:
        """Return the seconds from the end of `step` steps to the end of the run; None before enough are measured.

        `step_s`: the mean step to count with, where it is not that of this rank.
        """
        step_s = self.step_s() if step_s is None else step_s
        if step_s is None:
            return None
        remaining = (self._total_steps - step) * step_s
        due = {"validation": self._due(self._validate_every, step), "checkpoint": self._saves_due(step)}
        return remaining + sum(due[name] * fmean(seconds) for name, seconds in self._events_s.items() if seconds)

    def _saves_due(self, step: int) -> int:
        """Count the checkpoints after `step`: those of the two periods, less those that both ask for."""
        every, also = self._save_every, self._validate_every if self._saves_validated else None
        both = None if every is None or also is None else lcm(every, also)
        return self._due(every, step) + self._due(also, step) - self._due(both, step)

    def _due(self, every: int | None, step: int) -> int:
        """Count how often something is due after `step`; once more at the last step, where it is not due anyway."""
        if every is None or step >= self._total_steps:
            return 0
        return -(-self._total_steps // every) - step // every
