"""The weights of a run, put into a model of the same shape."""

from pathlib import Path

import pytest
import torch
from torch import nn

from core.checkpoint.store import CheckpointConfig, CheckpointError, CheckpointStore
from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.parallel.engine import build_engine
from core.parallel.settings import ParallelConfig
from core.rundir.files import CHECKPOINTS
from core.train.trained import load_trained

ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture
def trained(tmp_path: Path) -> nn.Linear:
    """The newest of two checkpoints of a run in `tmp_path`."""
    model = nn.Linear(3, 2)
    engine = build_engine(model, ParallelConfig(), optim=OptimConfig(lr=0.1), ranks=ALONE)
    store = CheckpointStore(tmp_path / CHECKPOINTS, CheckpointConfig(), ranks=ALONE, token=1)
    for step in (3, 7):
        nn.init.normal_(model.weight)
        store.save(engine, {"step": step}, step=step, wait=True)
    return model


def test_the_newest_weights_frozen(trained: nn.Linear, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    assert load_trained(model, tmp_path, ranks=ALONE) == 7
    assert torch.equal(model.weight, trained.weight) and torch.equal(model.bias, trained.bias)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert model(torch.ones(1, 3)).dtype == torch.float32


def test_another_precision_is_that_of_the_computations_alone(trained: nn.Linear, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    load_trained(model, tmp_path, ranks=ALONE, precision="bf16")
    assert model(torch.ones(1, 3)).dtype == torch.bfloat16
    assert torch.equal(model.weight, trained.weight)


@pytest.mark.usefixtures("trained")
def test_what_does_not_fit_or_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight \(2, 3\) instead of \(2, 4\)"):
        load_trained(nn.Linear(4, 2), tmp_path, ranks=ALONE)
    with pytest.raises(ValueError, match="has no complete checkpoint; train it first"):
        load_trained(nn.Linear(3, 2), tmp_path / "other", ranks=ALONE)
