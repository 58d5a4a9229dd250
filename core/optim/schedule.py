"""Learning-rate schedules: pure functions of the number of the update, so there is no scheduler state to lose.

Each kind is a section; `ratio(schedule, update)` is what the peak rate is multiplied by in update 1, 2, 3, ...
Warmup of W steps is update / W: the first update is not at rate 0, and update W is at the peak.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from core.config.schema import section

Steps = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]


@section
class Constant:
    """A linear warmup, then the peak rate."""

    kind: Literal["constant"] = "constant"
    warmup_steps: Steps = 0


@section
class Linear:
    """A linear warmup, then linear to 0 in update `total_steps`: fairseq's polynomial_decay of power 1."""

    kind: Literal["linear"] = "linear"
    warmup_steps: Steps
    total_steps: Count

    def __post_init__(self) -> None:
        _check_order(warmup_steps=self.warmup_steps, total_steps=self.total_steps)


@section
class Cosine:
    """A warmup, then half a cosine down to `min_ratio` in update `total_steps` (Loshchilov and Hutter 2017).

    `warmup: log` is log(update) / log(warmup_steps), as DeepSpeed's WarmupCosineLR has it.
    """

    kind: Literal["cosine"] = "cosine"
    warmup_steps: Steps
    total_steps: Count
    min_ratio: Ratio = 0.0
    warmup: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        _check_order(warmup_steps=self.warmup_steps, total_steps=self.total_steps)


@section
class Exponential:
    """A linear warmup, then gamma ** ((update - warmup_steps) / decay_steps)."""

    kind: Literal["exponential"] = "exponential"
    warmup_steps: Steps
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.96
    decay_steps: Count = 10_000


@section
class TriStage:
    """A rise from `initial_ratio`, a hold, then exponentially down to `final_ratio` (wav2vec 2.0 fine-tuning)."""

    kind: Literal["tri_stage"] = "tri_stage"
    warmup_steps: Steps
    hold_steps: Steps
    decay_steps: Count
    initial_ratio: Ratio = 0.01
    final_ratio: Annotated[float, Field(gt=0, le=1)] = 0.05


@section
class WarmupStableDecay:
    """A linear warmup, the peak rate, then linear to `min_ratio` over the last `decay_steps` of `total_steps`."""

    kind: Literal["wsd"] = "wsd"
    warmup_steps: Steps
    decay_steps: Count
    total_steps: Count
    min_ratio: Ratio = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"total_steps={self.total_steps} must be at least warmup_steps={self.warmup_steps} "
                f"+ decay_steps={self.decay_steps}"
            )


ScheduleConfig = Constant | Linear | Cosine | Exponential | TriStage | WarmupStableDecay


def ratio(schedule: ScheduleConfig, update: int) -> float:
    """Return the share of the peak rate in update 1, 2, ...; after the end of a schedule its last value."""
    assert update >= 1
    warmup = schedule.warmup_steps
    if update <= warmup:
        return _warmup_ratio(schedule, update)
    after = update - warmup
    match schedule:
        case Constant():
            return 1.0
        case Linear(total_steps=total):
            return max(0.0, (total - update) / max(1, total - warmup))
        case Cosine(total_steps=total, min_ratio=low):
            progress = min(1.0, after / max(1, total - warmup))
            return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case Exponential(gamma=gamma, decay_steps=decay):
            return float(gamma ** (after / decay))
        case TriStage(hold_steps=hold, decay_steps=decay, final_ratio=low):
            return float(low ** min(1.0, max(0, after - hold) / decay))
        case WarmupStableDecay(total_steps=total, decay_steps=decay, min_ratio=low):
            return low + (1.0 - low) * min(1.0, max(0, total - update) / decay)


def _warmup_ratio(schedule: ScheduleConfig, update: int) -> float:
    if isinstance(schedule, Cosine) and schedule.warmup == "log":
        return math.log(update) / math.log(max(2, schedule.warmup_steps))
    start = schedule.initial_ratio if isinstance(schedule, TriStage) else 0.0
    return start + (1.0 - start) * update / schedule.warmup_steps


def _check_order(*, warmup_steps: int, total_steps: int) -> None:
    if warmup_steps > total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be at most total_steps={total_steps}")
