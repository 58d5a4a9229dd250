"""Evaluation over all ranks: the sums of all batches are added up before any ratio is taken; a stop is heeded."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from core.job.run import Run
from core.train.metrics import MetricSums, merged_names

Score = Callable[[nn.Module, Any], Mapping[str, tuple[Any, Any]]]


class Evaluation(dict[str, float]):
    """Ratios by name, as records have them; `counts`: of each name (numerator, denominator), summed over all ranks."""

    def __init__(self, counts: Mapping[str, tuple[float, float]]) -> None:
        super().__init__({name: one / of for name, (one, of) in counts.items() if of})
        self.counts = dict(counts)


@torch.no_grad()  # not inference_mode: what ZeRO 3 gathers here it keeps for the training that follows
def evaluate(run: Run, model: nn.Module, batches: Iterable[Any], score: Score) -> Evaluation | None:
    """Return the ratios of what `score(model, batch)` counts, with the counts; None when a stop came in between.

    The model is in evaluation mode meanwhile. All ranks have the same number of batches (EvaluationPlan pads with empty
    ones, which count for nothing), so that a sharded model may take part in collectives.
    """
    sums = MetricSums()
    run.phases.enter("validate")
    with evaluation_mode(model):
        for batch in batches:
            if run.ranks.any(run.stop.reason is not None):
                return None
            counted = score(model, batch.to(run.ranks.device))
            if run.ranks.tp_rank == 0:
                sums.add(counted)
            run.phases.enter("validate")
    names = merged_names(run.ranks.gather(sums.names()))
    totals = run.ranks.total(sums.as_tensor(names).tolist())
    run.phases.enter("outside")
    return Evaluation(dict(zip(names, zip(totals[::2], totals[1::2], strict=True), strict=True)))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
