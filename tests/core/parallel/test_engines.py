"""Every strategy makes the same updates: those of one process on the full batch, with clipping, however it is cut."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from core.distributed import Ranks
from core.optim import OptimConfig
from core.parallel.engine import Engine, ParallelConfig, build_engine
from core.parallel.loss_scale import GROWTH_INTERVAL, INITIAL, LossScale
from tests.core.parallel.deepspeed_protocol import DeepSpeedProtocol
from tests.core.parallel.training import whole
from tests.ranks import run_on_ranks

MAX_NORM = 0.1
SGD = OptimConfig(name="sgd", lr=0.5, max_norm=MAX_NORM)
STEPS = 5
ROWS = 12
# Rows of the full batch by micro-batch: ranks of different sizes, then each rank's rows cut unevenly again.
WHOLE = ([range(0, 7)], [range(7, ROWS)])
CUT = ([range(0, 1), range(1, 7)], [range(7, 10), range(10, ROWS)])

Cut = tuple[list[range], ...]
History = tuple[list[float], list[float], dict[str, Tensor]]  # losses, gradient norms, parameters at the end


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
    return {
        name.removeprefix("module.").replace("_checkpoint_wrapped_module.", ""): whole(p)
        for name, p in model.named_parameters()
    }


def update(engine: Engine, ranks: Ranks, cut: Cut, step: int, *, poison: bool = False) -> tuple[float, float]:
    """One update; the mean loss over all ranks and the gradient norm."""
    x, y = full_batch(step)
    if poison:
        x = x * float("nan")
    total = 0.0
    mine = cut[ranks.dp_rank]
    for place, rows in enumerate(mine):
        with engine.accumulate(last=place == len(mine) - 1):
            loss = loss_sum(engine.model, x[rows], y[rows])
            engine.backward(loss * (ranks.dp_size / ROWS))
        total += loss.item()
    norm = engine.step(max_norm=MAX_NORM, lr=0.5)
    return ranks.total([total])[0] / ROWS, float(norm)


def built(ranks: Ranks, strategy: str, optim: OptimConfig = SGD, **parallel: object) -> Engine:
    if strategy == "deepspeed":
        return DeepSpeedProtocol(toy(), optim=optim)
    config = ParallelConfig(strategy=strategy, **parallel)  # type: ignore[arg-type]
    return build_engine(toy(), config, optim=optim, ranks=ranks)


def history(ranks: Ranks, strategy: str, cut: Cut, **parallel: object) -> History:
    engine = built(ranks, strategy, **parallel)
    pairs = [update(engine, ranks, cut, step) for step in range(STEPS)]
    return [loss for loss, _ in pairs], [norm for _, norm in pairs], numbers(engine.model)


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
    return losses, norms, numbers(model)


def assert_close(found: History, expected: History, *, rel: float = 1e-5) -> None:
    assert found[0] == pytest.approx(expected[0], rel=rel)
    assert found[1] == pytest.approx(expected[1], rel=rel)
    assert found[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        assert (found[2][name] - value).abs().max() <= rel, name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed"])
def test_updates_are_those_of_one_process(strategy: str) -> None:
    expected = reference()
    assert min(expected[1]) > MAX_NORM  # clipping is active in every step

    def train(ranks: Ranks) -> tuple[History, History]:
        return history(ranks, strategy, WHOLE), history(ranks, strategy, CUT)

    for at_once, accumulated in run_on_ranks(train, 2):
        assert_close(at_once, expected)
        assert_close(accumulated, expected)


def test_one_rank_accumulates_as_well() -> None:
    rows = ([range(0, 3), range(3, ROWS)],)
    (found,) = run_on_ranks(lambda ranks: history(ranks, "ddp", rows), 1)
    assert_close(found, reference())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    "optim",
    [SGD, replace(SGD, momentum=0.9), OptimConfig(name="adamw", lr=0.5, weight_decay=0.1, max_norm=MAX_NORM)],
    ids=["sgd", "momentum", "adamw"],
)
@pytest.mark.parametrize("bad_step", [0, 1])
def test_nan_on_one_rank_is_skipped_by_all(strategy: str, optim: OptimConfig, bad_step: int) -> None:
    def train(ranks: Ranks, with_bad: bool) -> tuple[list[float], dict[str, Tensor]]:
        engine, norms = built(ranks, strategy, optim), []
        for step in range(3):
            if with_bad and step == bad_step:
                before = numbers(engine.model)
                norms.append(update(engine, ranks, WHOLE, 9, poison=ranks.rank == 1)[1])
                assert all(torch.equal(value, before[name]) for name, value in numbers(engine.model).items())
            norms.append(update(engine, ranks, WHOLE, step)[1])
        return norms, numbers(engine.model)

    def both(ranks: Ranks) -> tuple:
        return train(ranks, True), train(ranks, False)

    for (norms, parameters), (undisturbed_norms, undisturbed) in run_on_ranks(both, 2):
        assert not torch.isfinite(torch.tensor(norms.pop(bad_step)))
        assert norms == undisturbed_norms
        assert all(torch.equal(value, undisturbed[name]) for name, value in parameters.items())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_bf16_is_close_and_keeps_fp32_parameters(strategy: str) -> None:
    for found in run_on_ranks(lambda ranks: history(ranks, strategy, CUT, precision="bf16"), 2):
        expected = reference()
        assert_close(found, expected, rel=0.03)
        assert found[0] != expected[0]
        assert all(value.dtype == torch.float32 for value in found[2].values())


def test_fp16_on_a_cpu_is_refused() -> None:
    alone = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"parallel\.precision=fp16 needs a GPU"):
        build_engine(toy(), ParallelConfig(precision="fp16"), optim=SGD, ranks=alone)


def test_fsdp2_alone_is_refused() -> None:
    alone = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="needs at least 2 ranks"):
        build_engine(toy(), ParallelConfig(strategy="fsdp2"), optim=SGD, ranks=alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_activation_checkpointing_changes_no_gradient(strategy: str) -> None:
    def train(ranks: Ranks) -> History:
        calls = []
        forward = Block.forward
        Block.forward = lambda self, x: (calls.append(1), forward(self, x))[1]  # type: ignore[method-assign]
        found = history(ranks, strategy, WHOLE, activation_checkpointing=True)
        assert len(calls) == 2 * 2 * STEPS  # two blocks, each computed once more on the way back
        return found

    for found in run_on_ranks(train, 2):
        assert_close(found, reference())


def test_loss_scale_halves_doubles_and_is_restored() -> None:
    scale, good, bad = LossScale(torch.device("cpu")), torch.tensor(0.0), torch.tensor(1.0)
    gradient = torch.tensor([INITIAL, 3 * INITIAL])
    scale.unscale([gradient])
    assert gradient.tolist() == [1.0, 3.0]
    scale.update(bad)
    assert scale.state() == {"loss_scale": INITIAL / 2, "good_steps": 0}
    for _ in range(GROWTH_INTERVAL - 1):
        scale.update(good)
    assert scale.state() == {"loss_scale": INITIAL / 2, "good_steps": GROWTH_INTERVAL - 1}
    other = LossScale(torch.device("cpu"))
    other.restore(scale.state())
    other.update(good)
    assert other.state() == {"loss_scale": INITIAL, "good_steps": 0}
    scale.update(bad)
    assert scale.state() == {"loss_scale": INITIAL / 4, "good_steps": 0}
    for _ in range(40):
        scale.update(bad)
    assert scale.state()["loss_scale"] == 1.0
