"""A toy model, its data, and updates of it: by any engine on any number of ranks, and by plain torch in one process."""

import gc
import importlib
import os
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.parallel.deepspeed.zero import ZeroConfig
from core.parallel.engine import Engine, build_engine
from core.parallel.settings import ParallelConfig
from tests import closeness
from tests.core.parallel.training import whole

# Once, here, and not in every rank that is forked: what engines and optimizers import when they are first made.
os.environ["DS_ACCELERATOR"] = "cpu"
for heavy in ("torch._dynamo", "core.parallel.deepspeed.engine", "deepspeed.runtime.zero.stage3"):
    importlib.import_module(heavy)
for heavy in ("muon.muon_optimizer", "stage_1_and_2"):
    importlib.import_module(f"deepspeed.runtime.zero.{heavy}")
importlib.import_module("deepspeed.runtime.superoffload.superoffload_stage3")
gc.freeze()  # ZeRO 3 collects garbage when it begins

MAX_NORM = 0.1
SGD = OptimConfig(name="sgd", lr=0.5, max_norm=MAX_NORM)
STEPS = 5
ROWS = 12
# Rows of the full batch by micro-batch: ranks of different sizes, then each rank's rows cut unevenly again.
WHOLE = ([range(0, 7)], [range(7, ROWS)])
CUT = ([range(0, 1), range(1, 7)], [range(7, 10), range(10, ROWS)])
IDLE = ([range(0, ROWS)], [range(0, 0)])  # nothing for rank 1

STRATEGIES = {
    "ddp": ParallelConfig(),
    "fsdp2": ParallelConfig(strategy="fsdp2"),
    **{
        f"deepspeed {stage}": ParallelConfig(strategy="deepspeed", zero=ZeroConfig(stage=stage))  # type: ignore[arg-type]
        for stage in (0, 1, 2)
    },
    # DeepSpeed leaves small parameters whole: at 0 all of these are dealt out.
    "deepspeed 3": ParallelConfig(strategy="deepspeed", zero=ZeroConfig(stage=3, param_persistence_threshold=0)),
}

Cut = tuple[list[range], ...]


class History(NamedTuple):
    losses: list[float]
    norms: list[float]
    parameters: dict[str, Tensor]  # at the end


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.layers, self.last = nn.Linear(5, 8), nn.ModuleList([Block(), Block()]), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def full_batch(step: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(100 + step)
    return torch.randn(ROWS, 5), torch.randn(ROWS, 3)


def loss_sum(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).float() - y).square().sum()


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, gathered, by the names of the bare model. All ranks together."""
    return {
        name.removeprefix("module.").replace("_checkpoint_wrapped_module.", ""): _gathered(p)
        for name, p in model.named_parameters()
    }


def _gathered(parameter: nn.Parameter) -> Tensor:
    if not hasattr(parameter, "ds_id"):
        return whole(parameter)
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def built(
    ranks: Ranks, strategy: str, optim: OptimConfig = SGD, model: nn.Module | None = None, **parallel: object
) -> Engine:
    return build_engine(model or toy(), replace(STRATEGIES[strategy], **parallel), optim=optim, ranks=ranks)


def update(
    engine: Engine, ranks: Ranks, cut: Cut, step: int, *, poison: bool = False, lr: float = 0.5
) -> tuple[float, float]:
    """One update; the mean loss over all ranks and the gradient norm."""
    x, y = full_batch(step)
    if poison:
        x = x * float("nan")
    total = 0.0
    mine = cut[ranks.dp_rank]
    engine.begin_step(step)
    for place, rows in enumerate(mine):
        with engine.accumulate(last=place == len(mine) - 1):
            loss = loss_sum(engine.model, x[rows], y[rows])
            engine.backward(loss * (ranks.dp_size / ROWS))
        total += loss.item()
    norm = engine.step(max_norm=MAX_NORM, lr=lr)
    return ranks.total([total])[0] / ROWS, float(norm)


def history(ranks: Ranks, strategy: str, cut: Cut, **parallel: object) -> History:
    engine = built(ranks, strategy, **parallel)
    pairs = [update(engine, ranks, cut, step) for step in range(STEPS)]
    return History([loss for loss, _ in pairs], [norm for _, norm in pairs], numbers(engine.model))


def reference() -> History:
    """Plain torch, one process, the full batch."""
    model = toy()
    losses, norms = [], []
    for step in range(STEPS):
        loss = loss_sum(model, *full_batch(step)) / ROWS
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.5 * g * min(1.0, MAX_NORM / norm.item())
        losses.append(loss.item())
        norms.append(norm.item())
    return History(losses, norms, numbers(model))


def assert_close(found: History, expected: History, *, rel: float = 1e-5) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=rel)
    assert found.norms == pytest.approx(expected.norms, rel=rel)
    assert found.parameters.keys() == expected.parameters.keys()
    largest = max(float(value.abs().max()) for value in expected.parameters.values())
    for name, value in expected.parameters.items():
        closeness.assert_close(found.parameters[name], value, rel=rel, of=largest, name=name)
