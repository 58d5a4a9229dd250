"""Every strategy makes the same updates: those of one process on the full batch, with clipping, however it is cut."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.optim.parameters import FreezeConfig, freeze
from core.parallel.dcp_files import read_metadata
from core.parallel.engine import Engine
from tests import closeness
from tests.core.parallel.toy import (
    CUT,
    IDLE,
    MAX_NORM,
    ROWS,
    SGD,
    STEPS,
    STRATEGIES,
    WHOLE,
    Block,
    History,
    Toy,
    assert_close,
    built,
    full_batch,
    history,
    loss_sum,
    numbers,
    reference,
    toy,
    update,
)
from tests.ranks import run_on_ranks

ADAMW = OptimConfig(name="adamw", lr=0.5, weight_decay=0.1, max_norm=MAX_NORM)
ALONE = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))

every_strategy = pytest.mark.parametrize("strategy", list(STRATEGIES))
every_deepspeed = pytest.mark.parametrize("strategy", [name for name in STRATEGIES if "deepspeed" in name])


@every_strategy
def test_updates_are_those_of_one_process(strategy: str) -> None:
    expected = reference()
    assert min(expected.norms) > MAX_NORM  # clipping is active in every step

    def train(ranks: Ranks) -> list[History]:
        found = [history(ranks, strategy, cut) for cut in (WHOLE, CUT, IDLE)]
        found.append(history(ranks, strategy, CUT, activation_checkpointing=True))
        engine = built(ranks, strategy)
        pairs = [update_in_parts(engine, ranks, step) for step in range(STEPS)]
        found.append(History([loss for loss, _ in pairs], [norm for _, norm in pairs], numbers(engine.model)))
        return found

    for histories in run_on_ranks(train, 2):
        for found in histories:
            assert_close(found, expected)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "fsdp2"])
def test_one_rank_accumulates_as_well(strategy: str) -> None:
    rows = ([range(0, 3), range(3, ROWS)],)
    (found,) = run_on_ranks(lambda ranks: history(ranks, strategy, rows), 1)
    assert_close(found, reference())


def update_in_parts(engine: Engine, ranks: Ranks, step: int) -> tuple[float, float]:
    """An update as GradCache makes it: all rows without gradients, then chunk by chunk forward and backward."""
    x, y = full_batch(step)
    parts = [rows for rows in CUT[ranks.dp_rank] for rows in (rows[: len(rows) // 2], rows[len(rows) // 2 :])]
    with torch.no_grad():
        total = sum(float(loss_sum(engine.model, x[rows], y[rows])) for rows in parts)
    for rows in parts:
        with engine.accumulate(last=rows is parts[-1]):
            engine.backward(loss_sum(engine.model, x[rows], y[rows]) * (ranks.dp_size / ROWS))
    return ranks.total([total])[0] / ROWS, float(engine.step(max_norm=MAX_NORM, lr=0.5))


@every_strategy
def test_nan_on_one_rank_is_skipped_by_all(strategy: str) -> None:
    def train(ranks: Ranks, optim: OptimConfig, bad_step: int | None) -> tuple[list[float], dict[str, Tensor]]:
        engine, norms = built(ranks, strategy, optim), []
        for step in range(3):
            if step == bad_step:
                before = numbers(engine.model)
                norms.append(update(engine, ranks, WHOLE, 9, poison=ranks.rank == 1)[1])
                assert all(torch.equal(value, before[name]) for name, value in numbers(engine.model).items())
            norms.append(update(engine, ranks, WHOLE, step)[1])
        return norms, numbers(engine.model)

    def each(ranks: Ranks) -> list[list[tuple[list[float], dict[str, Tensor]]]]:
        optims = (SGD, replace(SGD, momentum=0.9), ADAMW, replace(ADAMW, name="adam"))
        return [[train(ranks, optim, bad_step) for bad_step in (None, 0, 1)] for optim in optims]

    for of_rank in run_on_ranks(each, 2):
        for (undisturbed_norms, undisturbed), *disturbed in of_rank:
            for bad_step, (norms, parameters) in enumerate(disturbed):
                assert not torch.isfinite(torch.tensor(norms.pop(bad_step)))
                assert norms == undisturbed_norms
                assert all(torch.equal(value, undisturbed[name]) for name, value in parameters.items())


@every_strategy
def test_a_step_that_is_discarded_leaves_no_trace(strategy: str) -> None:
    def train(ranks: Ranks, discarded: bool) -> tuple[float, dict[str, Tensor]]:
        engine = built(ranks, strategy, ADAMW)
        update(engine, ranks, CUT, 0)
        if discarded:
            x, y = full_batch(7)
            for last in (False, True):
                with engine.accumulate(last=last):
                    engine.backward(loss_sum(engine.model, x, y))
            engine.discard()
        return update(engine, ranks, CUT, 1)[1], numbers(engine.model)

    for (norm, parameters), (undisturbed_norm, undisturbed) in run_on_ranks(
        lambda ranks: (train(ranks, True), train(ranks, False)), 2
    ):
        assert norm == undisturbed_norm
        assert all(torch.equal(value, undisturbed[name]) for name, value in parameters.items())


@pytest.mark.numerics
@every_strategy
def test_bf16_is_close_and_keeps_fp32_parameters_and_states(strategy: str, tmp_path: Path) -> None:
    def train(ranks: Ranks) -> History:
        engine = built(ranks, strategy, ADAMW, precision="bf16")
        update(engine, ranks, CUT, 0)
        engine.save(tmp_path / "w").result(60)
        return history(ranks, strategy, CUT, precision="bf16")

    for found in run_on_ranks(train, 2):
        expected = reference()
        assert_close(found, expected, rel=0.03)
        assert found.losses != expected.losses
        assert all(value.dtype == torch.float32 for value in found.parameters.values())
    saved = read_metadata(tmp_path / "w").state_dict_metadata
    assert {"model.first.weight", "optimizer.first.weight.exp_avg"} <= saved.keys()
    assert {entry.properties.dtype for entry in saved.values()} == {torch.float32}  # type: ignore[union-attr]


def test_fp16_on_a_cpu_is_refused() -> None:
    for strategy in STRATEGIES:
        with pytest.raises(ValueError, match=r"parallel\.precision=fp16 needs a GPU"):
            built(ALONE, strategy, precision="fp16")


def test_fsdp2_shards_each_block_and_then_the_rest() -> None:
    def sharded(ranks: Ranks) -> tuple[list[str], dict[str, str]]:
        model = toy()
        built(ranks, "fsdp2", model=model)
        units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        return units, {name: type(p).__name__ for name, p in model.named_parameters()}

    for units, kinds in run_on_ranks(sharded, 2):
        assert units == ["", "layers.0", "layers.1"]
        assert set(kinds.values()) == {"DTensor"}


def test_fsdp2_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 2 ranks"):
        built(ALONE, "fsdp2")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed 0", "deepspeed 3"])
def test_activation_checkpointing_computes_blocks_again(strategy: str) -> None:
    def train(ranks: Ranks) -> int:
        calls = []
        forward = Block.forward
        Block.forward = lambda self, x: (calls.append(1), forward(self, x))[1]  # type: ignore[method-assign]
        history(ranks, strategy, WHOLE, activation_checkpointing=True)
        return len(calls)

    assert run_on_ranks(train, 2) == [2 * 2 * STEPS] * 2  # two blocks, each once more on the way back


class Tied(Toy):
    """The weight of the first layer is that of the last, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.last.weight = self.first.weight


def tied() -> Tied:
    torch.manual_seed(0)
    return Tied()


def tied_batch(step: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(100 + step)
    return torch.randn(ROWS, 8), torch.randn(ROWS, 8)


@every_strategy
def test_tied_weights_stay_tied(strategy: str) -> None:
    def train(ranks: Ranks) -> tuple[dict[str, Tensor], bool]:
        model = tied()
        engine = built(ranks, strategy, model=model)
        for step in range(3):
            x, y = tied_batch(step)
            rows = WHOLE[ranks.dp_rank][0]
            with engine.accumulate(last=True):
                engine.backward(loss_sum(engine.model, x[rows], y[rows]) * (ranks.dp_size / ROWS))
            engine.step(max_norm=MAX_NORM, lr=0.5)
        return numbers(engine.model), model.last.weight is model.first.weight

    expected = tied()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    for step in range(3):
        (loss_sum(expected, *tied_batch(step)) / ROWS).backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    for parameters, is_tied in run_on_ranks(train, 2):
        assert is_tied
        assert parameters.keys() == numbers(expected).keys()
        for name, value in numbers(expected).items():
            closeness.assert_close(parameters[name], value, name=name)


@dataclass
class Output:
    prediction: Tensor
    scale: Tensor


class Unusual(Toy):
    """What ZeRO stumbles over: a dataclass as output, parameters of the root, unused ones, frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seldom = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, is_seldom: bool = False) -> Output:  # type: ignore[override]
        y = super().forward(x)
        return Output(self.seldom(y) if is_seldom else y, self.scale)


def unusual() -> Unusual:
    torch.manual_seed(0)
    model = Unusual()
    freeze(model, UNUSUAL.freeze)
    return model


UNUSUAL = replace(ADAMW, freeze=FreezeConfig(patterns=[r"layers\.0"]))


def unusual_loss(output: Output, y: Tensor) -> Tensor:
    return (output.prediction * output.scale - y).square().sum()


@every_deepspeed
def test_unused_and_frozen_parameters_and_dataclasses(strategy: str) -> None:
    """A parameter without a gradient counts as one whose gradient is 0, on all stages alike."""

    def train(ranks: Ranks) -> dict[str, Tensor]:
        zero = replace(STRATEGIES[strategy].zero, wall_clock_breakdown=True)  # it minds where backward begins
        engine = built(ranks, strategy, UNUSUAL, model=unusual(), zero=zero)
        for step in range(3):
            x, y = full_batch(step)
            rows = WHOLE[ranks.dp_rank][0]
            with engine.accumulate(last=True):
                output = engine.model(x[rows], is_seldom=step == 1)
                engine.backward(unusual_loss(output, y[rows]) * (ranks.dp_size / ROWS))
            engine.step(max_norm=MAX_NORM, lr=0.5)
        return numbers(engine.model)

    expected = unusual()
    trained = [p for p in expected.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if (p.ndim > 1) == matrices]} for matrices in (True, False)]
    groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(groups, lr=0.5, weight_decay=0.1)
    for step in range(3):
        x, y = full_batch(step)
        (unusual_loss(expected(x, is_seldom=step == 1), y) / ROWS).backward()
        for p in trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    for parameters in run_on_ranks(train, 2):
        for name, value in numbers(expected).items():
            closeness.assert_close(parameters[name], value, rel=1e-4, name=name)
