"""Weights that two ranks save while they train, and that come back on two ranks or one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from core.distributed import Ranks
from core.parallel.weights import load_weights, save_weights
from tests.core.parallel.training import OPTIMIZERS, Net, adamw, assert_same, everything, net, train
from tests.ranks import run_on_ranks


def prepared(kind: str, seed: int, ranks: Ranks) -> tuple[nn.Module, torch.optim.Optimizer]:
    model: nn.Module = net(seed)
    if kind == "fsdp2":
        assert ranks.mesh is not None and isinstance(model, Net)
        for part in (model.first, model.second):
            fully_shard(part, mesh=ranks.mesh["dp"])
        fully_shard(model, mesh=ranks.mesh["dp"])
    elif kind == "ddp":
        model = DistributedDataParallel(model, find_unused_parameters=True)
    return model, (OPTIMIZERS["momentum"] if kind == "ddp" else adamw)(model)


def save_on(ranks: Ranks, kind: str, path: Path) -> dict[str, object]:
    model, optimizer = prepared(kind, 1, ranks)
    train(model, optimizer, steps=2)
    save_weights(model, optimizer, path, group=ranks.saves).result(60)
    return everything(model, optimizer)


def load_on(ranks: Ranks, kind: str, path: Path) -> dict[str, object]:
    model, optimizer = prepared(kind, 2, ranks)
    load_weights(model, optimizer, path, group=ranks.votes)
    loaded = everything(model, optimizer)
    train(model, optimizer, steps=1)  # what was loaded can be trained
    return loaded


def alone() -> Ranks:
    return Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_to_two_ranks_and_to_one(kind: str, tmp_path: Path) -> None:
    before = run_on_ranks(save_on, 2, kind, tmp_path / "w")
    assert {path.name for path in (tmp_path / "w").iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    sizes = [(tmp_path / "w" / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1)]
    assert min(sizes) > 0.3 * sum(sizes), f"each rank writes about a half, not {sizes}"
    for after in run_on_ranks(load_on, 2, kind, tmp_path / "w"):
        assert_same(before[0], after)
    model = net(2)
    optimizer = (OPTIMIZERS["momentum"] if kind == "ddp" else adamw)(model)
    load_weights(model, optimizer, tmp_path / "w", group=None)
    assert_same(before[0], everything(model, optimizer))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_one_rank_to_two(kind: str, tmp_path: Path) -> None:
    model = net(1)
    optimizer = (OPTIMIZERS["momentum"] if kind == "ddp" else adamw)(model)
    train(model, optimizer, steps=2)
    save_weights(model, optimizer, tmp_path / "w", group=None).result(60)
    for after in run_on_ranks(load_on, 2, kind, tmp_path / "w"):
        assert_same(everything(model, optimizer), after)


def train_while_saving(ranks: Ranks, path: Path) -> tuple[dict[str, object], float, list[float], list[float], int]:
    """Gradients and votes go on over their own groups while DCP agrees with the other rank over `saves`."""

    def run(is_saving: bool) -> tuple[dict[str, object], list[float], int]:
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Sequential(*(nn.Linear(200, 200) for _ in range(4))))
        optimizer = adamw(model)
        moment: dict[str, object] = {}
        losses, during = [], 0
        written = None
        for step in range(30):
            if step == 5 and is_saving:
                moment = everything(model, optimizer)
                written = save_weights(model, optimizer, path, group=ranks.saves)
            torch.manual_seed(100 * ranks.rank + step)
            loss = model(torch.randn(4, 200)).square().mean()
            loss.backward()
            ranks.total([loss.item()])
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            during += written is not None and not written.done()
        if written is not None:
            written.result(60)
        return moment, losses, during

    quiet = run(False)[1]
    moment, losses, during = run(True)
    return moment, dist.get_rank(ranks.saves), losses, quiet, during


def test_two_ranks_train_while_they_save(tmp_path: Path) -> None:
    results = run_on_ranks(train_while_saving, 2, tmp_path / "w")
    for _, _, losses, quiet, during in results:
        assert losses == quiet, "saving must not touch training"
        assert during > 0, "the save should not have been over at once"
    model = nn.Sequential(*(nn.Linear(200, 200) for _ in range(4)))
    optimizer = adamw(model)
    load_weights(model, optimizer, tmp_path / "w", group=None)
    assert_same(results[0][0], everything(model, optimizer))


def fail_on_one_rank(ranks: Ranks, path: Path) -> list[str]:
    """Rank 1 cannot write; then rank 1 finds a refused file. Both ranks hear of both."""
    model, optimizer = prepared("ddp", 1, ranks)
    train(model, optimizer, steps=1)
    errors = []
    mine = path / "blocked" if ranks.rank == 1 else path / "fine"
    if ranks.rank == 1:
        (path / "blocked").write_text("a file where a directory should be")
    try:
        save_weights(model, optimizer, mine / "w", group=ranks.saves).result(60)
    except OSError as error:
        errors.append(f"{type(error).__name__} {error.__notes__}")
    save_weights(model, optimizer, path / "good", group=ranks.saves).result(60)
    ranks.barrier()
    mine = path / ("missing" if ranks.rank == 1 else "good")
    try:
        load_weights(model, optimizer, mine, group=ranks.votes)
    except ValueError as error:
        errors.append(str(error))
    return errors


def test_an_error_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    first, second = run_on_ranks(fail_on_one_rank, 2, tmp_path)
    assert first == second
    assert first[0] == "NotADirectoryError ['on rank 1']"
    assert "missing" in first[1]
