"""What is trained later stays as it was, to the bit, with all that the optimizer would keep of it, and then learns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.distributed import Ranks
from core.optim.optim import OptimConfig
from core.optim.parameters import ThawConfig
from core.parallel.dcp_files import read_metadata
from core.parallel.engine import Engine, build_engine
from core.parallel.settings import ParallelConfig
from tests import closeness
from tests.core.parallel.toy import MAX_NORM, ROWS, STEPS, WHOLE, built, full_batch, loss_sum, numbers, toy, update
from tests.ranks import run_on_ranks

AFTER = 2
LATE = ("first.", "layers.")
OPTIM = OptimConfig(
    name="adamw", lr=0.5, weight_decay=0.1, max_norm=MAX_NORM,
    thaw=ThawConfig(patterns=["first", r"layers\."], after_steps=AFTER),
)  # fmt: skip
ONE = ([range(0, 7), range(7, ROWS)],)


def reference() -> list[dict[str, Tensor]]:
    """Plain torch, one process, the full batch; the parameters after each update."""
    model = toy()
    head, late = list(model.last.parameters()), [p for n, p in model.named_parameters() if n.startswith(LATE)]
    optimizers = [torch.optim.AdamW([p], lr=0.5, weight_decay=0.1 * (p.ndim > 1)) for p in head + late]
    found = []
    for step in range(STEPS):
        trained = head + late if step >= AFTER else head
        gradients = torch.autograd.grad(loss_sum(model, *full_batch(step)) / ROWS, trained)
        norm = torch.cat([g.flatten() for g in gradients]).norm().item()
        assert norm > MAX_NORM, "clipping must be active"
        for parameter, gradient, optimizer in zip(trained, gradients, optimizers, strict=False):
            parameter.grad = gradient * (MAX_NORM / norm)
            optimizer.step()
        found.append(numbers(model))
    return found


def names_with_state(engine: Engine, folder: Path, ranks: Ranks) -> set[str]:
    engine.save(folder).result()
    ranks.barrier()
    keys = [key.split(".", 1) for key in read_metadata(folder).state_dict_metadata]
    return {rest.rpartition(".")[0] for kind, rest in keys if kind == "optimizer"}


@pytest.mark.parametrize(("strategy", "num_ranks"), [("ddp", 1), ("ddp", 2), ("fsdp2", 2)])
def test_late_parameters_begin_to_learn_when_they_should(strategy: str, num_ranks: int, tmp_path: Path) -> None:
    def train(ranks: Ranks) -> tuple[list[dict[str, Tensor]], list[set[str]]]:
        engine, parameters, states = built(ranks, strategy, OPTIM), [], []
        for step in range(STEPS):
            update(engine, ranks, ONE if num_ranks == 1 else WHOLE, step)
            parameters.append(numbers(engine.model))
            states.append(names_with_state(engine, tmp_path / str(step), ranks))
        return parameters, states

    begin, expected = numbers(toy()), reference()
    for parameters, states in run_on_ranks(train, num_ranks):
        for step in range(STEPS):
            for name, value in expected[step].items():
                closeness.assert_close(parameters[step][name], value, rel=1e-4, name=(step, name))
                if step < AFTER and name.startswith(LATE):
                    assert torch.equal(parameters[step][name], begin[name]), (step, name)
            assert states[step] == ({"last.weight", "last.bias"} if step < AFTER else set(begin))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("at", [1, AFTER, AFTER + 1])
def test_an_engine_that_is_loaded_goes_on_as_the_one_that_was_saved(strategy: str, at: int, tmp_path: Path) -> None:
    def train(ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        whole, rest = built(ranks, strategy, OPTIM), built(ranks, strategy, OPTIM)
        for step in range(STEPS):
            if step == at:
                whole.save(tmp_path / "weights").result()
                ranks.barrier()
                rest.load(tmp_path / "weights")
            for engine in (whole, rest)[: 1 + (step >= at)]:
                update(engine, ranks, WHOLE, step)
        end = numbers(whole.model)
        whole.load(tmp_path / "weights")  # back, after a divergence: what was frozen then is frozen again
        for step in range(at, STEPS):
            update(whole, ranks, WHOLE, step)
        return end, numbers(rest.model), numbers(whole.model)

    for end, resumed, again in run_on_ranks(train, 2):
        for name, value in end.items():
            assert torch.equal(value, resumed[name]) and torch.equal(value, again[name]), name


@pytest.mark.parametrize(("patterns", "problem"), [
    (["first", "layers", "last"], r"must leave a parameter to train in the first 2 updates"),
    (["encoder"], r"thaw\.patterns=encoder must match a parameter; names begin with first, last, layers"),
])  # fmt: skip
def test_a_thaw_that_cannot_be(patterns: list[str], problem: str) -> None:
    alone = Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu"))
    optim = OptimConfig(lr=0.5, thaw=ThawConfig(patterns=patterns, after_steps=2))
    with pytest.raises(ValueError, match=problem):
        build_engine(toy(), ParallelConfig(), optim=optim, ranks=alone)
