"""The weights of a run, put into a model of the same shape."""

from pathlib import Path

import pytest
import torch
from torch import nn

from core.checkpoint.store import CheckpointConfig, CheckpointError, CheckpointStore
from core.config.schema import section
from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.parallel.engine import build_engine
from core.parallel.settings import ParallelConfig
from core.rundir.files import CHECKPOINTS, CONFIG
from core.train.trained import TrainedRun, load_trained, load_weights_of_run, weights_hash

ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


@section
class Size:
    width: int = 3
    dropout: float = 0.1
    num_classes: int = 2


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


def run_in(folder: Path, config: str) -> TrainedRun:
    (folder / CONFIG).write_text(config)
    return TrainedRun(folder, "toys", "pretrained.run=toy")


def test_a_run_is_opened_by_its_own_configuration(trained: nn.Linear, tmp_path: Path) -> None:
    run = run_in(tmp_path, "model: {width: 3}")
    model = run.model(Size, lambda size: nn.Linear(size.width, size.num_classes), ranks=ALONE)
    assert torch.equal(model.weight, trained.weight) and not model.training


def test_a_run_begins_with_a_part_of_another(trained: nn.Linear, tmp_path: Path) -> None:
    run, mine = run_in(tmp_path, "model: {width: 3}"), nn.Linear(3, 2)
    whole = nn.Linear(3, 2)
    load_weights_of_run(mine, run, whole, "", checkpoint=weights_hash(trained), ranks=ALONE)
    assert torch.equal(mine.weight, trained.weight)
    assert mine.training and mine.weight.requires_grad, "what is loaded first is frozen, what begins with it is not"
    with pytest.raises(ValueError, match=r"pretrained\.checkpoint=0123: the newest weights of .* are "):
        load_weights_of_run(mine, run, whole, "", checkpoint="0123", ranks=ALONE)


def test_another_kind_of_run_and_another_model_are_said(tmp_path: Path) -> None:
    run = run_in(tmp_path, "model: {width: wide}")
    with pytest.raises(ValueError, match=r"pretrained\.run=toy is no run of toys: .*:1: model\.width: got "):
        run.section(Size, "model")
    with pytest.raises(ValueError, match="there is no such section"):
        run.section(Size, "data")
    with pytest.raises(ValueError, match="is not the directory of a trained run"):
        TrainedRun(tmp_path / "nowhere", "toys", "x").section(Size, "model")
    here = Size(width=4, dropout=0.5, num_classes=7)
    with pytest.raises(ValueError, match=r"toy has another encoder: model\.width: 3 there, 4 here$"):
        run.refuse_differences(Size(), here, key="model", may_differ=["num_classes"])
    run.refuse_differences(Size(), Size(dropout=0.9), key="model")
