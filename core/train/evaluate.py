"""Evaluation over all ranks: the sums of all batches are added up before any ratio is taken; a stop is heeded."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from core.job.run import Run
from core.train.metrics import MetricSums, merged_names, ratios

Score = Callable[[nn.Module, Any], Mapping[str, tuple[Any, Any]]]


@torch.no_grad()  # not inference_mode: what ZeRO 3 gathers here it keeps for the training that follows
def evaluate(run: Run, model: nn.Module, batches: Iterable[Any], score: Score) -> dict[str, float] | None:
    """The ratios of what `score(model, batch)` counts; None when a stop came in between.

    All ranks have the same number of batches (EvaluationPlan pads with empty ones, which count for nothing), so that
    a sharded model may take part in collectives.
    """
    sums = MetricSums()
    run.phases.enter("validate")
    for batch in batches:
        if run.ranks.any(run.stop.reason is not None):
            return None
        counted = score(model, batch.to(run.ranks.device))
        if run.ranks.tp_rank == 0:
            sums.add(counted)
        run.phases.enter("validate")
    names = merged_names(run.ranks.gather(sums.names()))
    totals = sums.as_tensor(names)
    run.phases.enter("outside")
    found = ratios(names, totals.new_tensor(run.ranks.total(totals.tolist())))
    return {name: value for name, value in found.items() if value is not None}
