"""Evaluation: without dropout whatever mode the model is in, with the counts that its ratios rest on."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.distributed import Ranks
from core.timing.phases import Phases
from core.train.evaluate import evaluate
from tests.ranks import run_on_ranks

ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


class Batch:
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def to(self, device: torch.device) -> "Batch":
        return self


def run_of(ranks: Ranks, *, reason: str | None = None) -> Any:
    return SimpleNamespace(ranks=ranks, phases=Phases(), stop=SimpleNamespace(reason=reason))


def positive(model: nn.Module, batch: Batch) -> dict[str, tuple[Any, Any]]:
    """How many outputs are above 0, and of a clip, for which none stands here, nothing."""
    return {"share": ((model(batch.rows) > 0).sum(), float(len(batch.rows))), "nothing": (0.0, 0.0)}


def test_dropout_is_off_and_each_module_gets_its_own_mode_back() -> None:
    frozen = nn.BatchNorm1d(1).eval()
    model = nn.Sequential(nn.Dropout(0.9), nn.ModuleDict({"norm": frozen})["norm"])
    assert model.training, "as after fit"
    found = evaluate(run_of(ALONE), model, [Batch(torch.ones(50, 1)), Batch(torch.ones(7, 1))], positive)
    assert found == {"share": 1.0} and found is not None
    assert found.counts == {"share": (57.0, 57.0), "nothing": (0.0, 0.0)}
    assert model.training and model[0].training and not frozen.training


def test_a_stop_and_an_error_give_the_mode_back_too() -> None:
    model = nn.Dropout(0.5)
    assert evaluate(run_of(ALONE, reason="time"), model, [Batch(torch.ones(2, 1))], positive) is None
    assert model.training
    with pytest.raises(TypeError):
        evaluate(run_of(ALONE), model, [Batch(None)], positive)  # type: ignore[arg-type]
    assert model.training
    assert evaluate(run_of(ALONE), model.eval(), [], positive) == {}
    assert not model.training


def test_counts_are_those_of_all_ranks() -> None:
    def work(ranks: Ranks) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        rows = torch.tensor([[1.0], [-1.0], [1.0]])[: 3 - ranks.dp_rank]
        found = evaluate(run_of(ranks), nn.Identity(), [Batch(rows)], positive)
        assert found is not None
        return dict(found), found.counts

    for ratios, counts in run_on_ranks(work, 2):
        assert ratios == {"share": 3 / 5}
        assert counts == {"share": (3.0, 5.0), "nothing": (0.0, 0.0)}
