"""The steps of a run as batches: the plan's micro-batches of this rank, read ahead by workers, in the plan's order.

The plan runs ahead of training in the loader; where the run stands is told by the steps that come out, never by the
loader, so a resume starts exactly where the last finished step ended.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Protocol

import torch
from pydantic import Field
from torch.utils.data import DataLoader, IterableDataset

from core.config.schema import section
from core.distributed import Ranks
from core.samplers.evaluation import EvaluationPlan
from core.samplers.plan import Draw, Plan, Position, check_dp_size, rank_micro_batches
from core.signals import ignore_stop_signals

logger = logging.getLogger(__name__)


class PlannedDataset(Protocol):
    """A dataclass; `dataset[draws]` is the batch of a micro-batch in `segment` of the plan."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def segment(self) -> int: ...
    def __getitem__(self, draws: Sequence[Draw]) -> Any: ...


@section
class LoaderConfig:
    """`num_workers` processes a rank read ahead `prefetch` micro-batches each; 0 reads in the training process."""

    num_workers: Annotated[int, Field(ge=0)] = 2
    prefetch: Annotated[int, Field(ge=1)] = 4


@dataclass(frozen=True)
class BatchedStep:
    """One step of this rank: its micro-batches, and where the plan stands once they are trained on."""

    batches: list[Any]
    position: dict[str, Any]
    epoch: float


class TrainStream:
    """The endless steps of a plan, from any position."""

    def __init__(
        self, plan: Plan, dataset: PlannedDataset, *, config: LoaderConfig, ranks: Ranks, accept_data: bool = False
    ) -> None:
        """Raise ValueError where the number of dp ranks does not divide the micro-batches of a step.

        `accept_data`: a run that was trained on other manifests goes on with these, as a new segment of the plan.
        """
        self.micro_batches_per_step, alike = plan.rules.micro_batches_per_step, plan.rules.alike_micro_batches
        check_dp_size(ranks.dp_size, micro_batches_per_step=self.micro_batches_per_step, alike=alike)
        self._plan, self._dataset, self._config, self._ranks = plan, dataset, config, ranks
        self._accept_data = accept_data
        self.num_examples = plan.num_examples

    def describe(self) -> list[str]:
        return self._plan.statistics.describe()

    def steps(self, position: Mapping[str, Any] | None = None) -> Iterator[BatchedStep]:
        """Yield steps from `position` on, that of the last step trained on; None: from the start.

        ValueError where the position belongs to other data, unless that is accepted.
        """
        start = Position(0, 0, 0) if position is None else Position(**position["plan"])
        if position is not None and position["fingerprint"] != self._plan.fingerprint:
            if not self._accept_data:
                raise ValueError(
                    "data: the manifests differ from those this run was trained on so far; restore them, "
                    "start a new run, or go on with these by run.accept_data=true"
                )
            start = Position(start.segment + 1, 0, 0)
            logger.info("the data changed: segment %d of the plan begins", start.segment)
        plan = self._plan.in_segment(start.segment)
        dataset = replace(self._dataset, segment=start.segment)
        after: deque[tuple[int, Position, float]] = deque()

        def micro_batches() -> Iterator[list[Draw]]:
            for step in plan.steps(start):
                own = rank_micro_batches(step, dp_rank=self._ranks.dp_rank, dp_size=self._ranks.dp_size)
                epoch = max((draw.epoch for draws in own for draw in draws), default=0)
                after.append((len(own), step.after, float(epoch)))
                yield from own

        batches = iter(load(dataset, micro_batches(), config=self._config, ranks=self._ranks))
        while True:
            first = next(batches)
            count, reached, epoch = after.popleft()
            rest = [next(batches) for _ in range(count - 1)]
            place = {"plan": reached._asdict(), "fingerprint": self._plan.fingerprint}
            yield BatchedStep([first, *rest], place, epoch)


def evaluation_batches(
    plan: EvaluationPlan, dataset: PlannedDataset, *, config: LoaderConfig, ranks: Ranks
) -> Iterable[Any]:
    """Return a rank's share of an evaluation: each example once over all ranks, as many batches on each."""
    draws = plan.batches(ranks.dp_rank, ranks.dp_size)
    return load(dataset, draws, config=config, ranks=ranks)


def load(
    dataset: PlannedDataset | IterableDataset[Any],
    draws: Iterable[Sequence[Draw]] | None = None,
    *,
    config: LoaderConfig,
    ranks: Ranks,
) -> Iterable[Any]:
    """Return the batches of `draws` in order, or those that the dataset itself yields; workers read ahead."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # it asks for torch's own base class, and uses no more than the protocol
        sampler=draws,
        batch_size=None,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch if config.num_workers else None,
        pin_memory=ranks.device.type == "cuda",
        worker_init_fn=_start_worker,
    )


def _start_worker(worker: int) -> None:
    ignore_stop_signals()
    torch.set_num_threads(1)
