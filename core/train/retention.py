"""Which checkpoints stay: the last ones, every so many steps, and the best by a metric."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from core.config import section
from core.train.checkpoint_files import Checkpoint


@section
class BestConfig:
    """Keep the `k` checkpoints with the smallest (`min`) or largest (`max`) value of a validation `metric`."""

    metric: str
    mode: Literal["min", "max"]
    k: Annotated[int, Field(ge=1)] = 1


def best_first(checkpoints: Sequence[Checkpoint], config: BestConfig) -> list[Checkpoint]:
    """The complete checkpoints whose metric is known, best first; of equal ones the later first."""
    sign = 1 if config.mode == "min" else -1
    scored = [(checkpoint, checkpoint.metrics().get(config.metric)) for checkpoint in checkpoints]
    ranked = sorted(
        ((sign * value, -checkpoint.step, checkpoint) for checkpoint, value in scored if value is not None),
        key=lambda entry: entry[:2],
    )
    return [checkpoint for _, _, checkpoint in ranked]


def outlived(
    checkpoints: Sequence[Checkpoint],
    *,
    keep_last: int,
    keep_every_steps: int | None,
    keep_best: BestConfig | None,
) -> list[Checkpoint]:
    """Of complete checkpoints in the order of steps, those that may go; never the newest."""
    kept = {checkpoint.step for checkpoint in checkpoints[-keep_last:]}
    if keep_every_steps is not None:
        kept |= {checkpoint.step for checkpoint in checkpoints if checkpoint.step % keep_every_steps == 0}
    if keep_best is not None:
        kept |= {checkpoint.step for checkpoint in best_first(checkpoints, keep_best)[: keep_best.k]}
    return [checkpoint for checkpoint in checkpoints if checkpoint.step not in kept]
