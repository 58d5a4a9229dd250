"""Which checkpoints stay: the last ones, every so many steps, and the best by a metric."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from core.config.schema import section
from core.rundir.checkpoints import Checkpoint

TRAIN_LOSS = "train_loss"  # the mean loss of the last record before the save


@section
class BestConfig:
    """The `k` checkpoints to keep with the smallest (`min`) or largest (`max`) value of `metric`: one of the validation
    or `train_loss`, the mean loss of the last record before the save.
    """

    metric: str
    mode: Literal["min", "max"]
    k: Annotated[int, Field(ge=1)] = 1


def best_first(checkpoints: Sequence[Checkpoint], config: BestConfig) -> list[Checkpoint]:
    """Return the complete checkpoints whose metric is known, best first; of equal ones the later first."""
    sign = 1 if config.mode == "min" else -1
    scored = [(checkpoint, checkpoint.metrics().get(config.metric)) for checkpoint in checkpoints]
    ranked = sorted(
        ((sign * value, -checkpoint.step, checkpoint) for checkpoint, value in scored if value is not None),
        key=lambda entry: entry[:2],
    )
    return [checkpoint for _, _, checkpoint in ranked]


def check_metrics(keep_best: Sequence[BestConfig], metrics: Mapping[str, float]) -> None:
    """Raise ValueError for a metric that neither a validation nor the training reports."""
    for best in keep_best:
        if best.metric != TRAIN_LOSS and best.metric not in metrics:
            known = ", ".join(sorted([*metrics, TRAIN_LOSS]))
            raise ValueError(f"checkpoint.keep_best: metric={best.metric} is not among those of a validation: {known}")


def removable(
    checkpoints: Sequence[Checkpoint],
    *,
    keep_last: int,
    keep_every_steps: int | None,
    keep_best: Sequence[BestConfig],
) -> list[Checkpoint]:
    """Return those of complete checkpoints in the order of steps that may go; never the newest."""
    kept = {checkpoint.step for checkpoint in checkpoints[-keep_last:]}
    if keep_every_steps is not None:
        kept |= {checkpoint.step for checkpoint in checkpoints if checkpoint.step % keep_every_steps == 0}
    for best in keep_best:
        kept |= {checkpoint.step for checkpoint in best_first(checkpoints, best)[: best.k]}
    return [checkpoint for checkpoint in checkpoints if checkpoint.step not in kept]
