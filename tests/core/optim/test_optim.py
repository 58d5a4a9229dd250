"""Optimizers against their formulas, groups and frozen parameters, and the table."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from core.optim.optim import Linear, OptimConfig, build_optimizer, learning_rate
from core.optim.parameters import DecayConfig, FreezeConfig, describe_parameters, freeze


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(2))
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(1))


def update(config: OptimConfig, *, num_steps: int) -> np.ndarray:
    """The weight after updates with the gradients 1, 2, 3, ... at rates of the schedule."""
    linear = nn.Linear(2, 2, bias=False)
    nn.init.constant_(linear.weight, 0.5)
    optimizer = build_optimizer(linear, config)
    for step in range(num_steps):
        linear.weight.grad = torch.full((2, 2), float(step + 1))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
    return linear.weight.detach().numpy()


def adam_by_hand(*, decoupled: bool, lr: float, decay: float, num_steps: int) -> float:
    """Kingma and Ba 2015, Loshchilov and Hutter 2019, betas (0.8, 0.95), eps 1e-6."""
    w, m, v = 0.5, 0.0, 0.0
    for t in range(1, num_steps + 1):
        g = float(t) + (0.0 if decoupled else decay * w)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        w -= lr * decay * w if decoupled else 0.0
        w -= lr * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
    return w


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_adam_equals_its_formula(name: str) -> None:
    config = OptimConfig(name=name, lr=0.1, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.3)
    expected = adam_by_hand(decoupled=name == "adamw", lr=0.1, decay=0.3, num_steps=4)
    np.testing.assert_allclose(update(config, num_steps=4), expected, rtol=1e-5)


def test_sgd_equals_its_formula_with_momentum_decay_and_schedule() -> None:
    config = OptimConfig(
        name="sgd", lr=0.1, momentum=0.5, weight_decay=0.2, schedule=Linear(warmup_steps=2, total_steps=6)
    )
    w, velocity = 0.5, 0.0
    for gradient, rate in zip([1.0, 2.0, 3.0], [0.05, 0.1, 0.075], strict=True):
        velocity = 0.5 * velocity + gradient + 0.2 * w
        w -= rate * velocity
    np.testing.assert_allclose(update(config, num_steps=3), w, rtol=1e-5)


def group_names(model: nn.Module, config: OptimConfig) -> dict[float, set[str]]:
    optimizer = build_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}


def test_weight_decay_is_for_matrices_unless_asked() -> None:
    matrices = {"encoder.0.0.weight", "encoder.1.0.weight", "head.weight"}
    config = OptimConfig(lr=1.0, weight_decay=0.1)
    assert group_names(Model(), config)[0.1] == matrices
    config = OptimConfig(lr=1.0, weight_decay=0.1, decay=DecayConfig(to="all", exceptions=["scale"]))
    assert group_names(Model(), config)[0.0] == {"scale"}
    config = OptimConfig(lr=1.0, weight_decay=0.1, decay=DecayConfig(exceptions=["head"]))
    assert group_names(Model(), config)[0.1] == matrices - {"head.weight"}


def test_frozen_parameters_get_no_gradient_and_no_update() -> None:
    model = Model()
    config = OptimConfig(
        lr=1.0,
        weight_decay=0.1,
        freeze=FreezeConfig(patterns=[r"encoder\.", "scale"], exceptions=[r"encoder\.1\.1\..*"]),
    )
    freeze(model, config.freeze)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias", "encoder.1.1.weight", "encoder.1.1.bias"}
    assert set().union(*group_names(model, config).values()) == trained


def test_an_optimizer_before_the_freeze_is_refused() -> None:
    with pytest.raises(AssertionError, match="freeze"):
        build_optimizer(Model(), OptimConfig(lr=1.0, freeze=FreezeConfig(patterns=["head"])))


@pytest.mark.parametrize(
    "config, message",
    [
        (
            FreezeConfig(patterns=["decoder"]),
            "freeze.patterns=decoder must match a parameter; names begin with encoder, head",
        ),
        (FreezeConfig(patterns=["head"], exceptions=["encoder"]), "freeze.exceptions=encoder must match"),
    ],
)
def test_an_expression_that_matches_nothing_is_an_error(config: FreezeConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(Model(), config)


def test_everything_frozen_is_an_error() -> None:
    model, config = Model(), OptimConfig(lr=1.0, freeze=FreezeConfig(patterns=[""]))
    freeze(model, config.freeze)
    with pytest.raises(ValueError, match="must leave a parameter to train"):
        build_optimizer(model, config)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"momentum": 0.9}, "momentum=0.9 must be 0 with name=adamw"),
        ({"name": "sgd", "betas": [0.8, 0.9]}, "must be left out with name=sgd"),
        ({"lr": 0.0}, "greater than 0"),
    ],
)
def test_contradictions_are_errors(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimConfig(**{"lr": 1.0, **keys})


def test_an_expression_must_be_one() -> None:
    with pytest.raises(ValidationError, match="patterns=\\( must be a regular expression"):
        FreezeConfig(patterns=["("])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizers_are_fused_and_skip_on_the_device(name: str) -> None:
    """`found_inf` leaves parameters and states as they were: what the engine needs to skip an update without a sync."""
    linear = nn.Linear(2, 2)
    before = linear.weight.detach().clone()
    optimizer = build_optimizer(linear, OptimConfig(name=name, lr=1.0))
    linear.weight.grad = torch.full((2, 2), float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.grad_scale = None
    optimizer.step()
    assert torch.equal(linear.weight, before)


def test_the_table_counts_every_parameter_once() -> None:
    text = describe_parameters(Model(), freeze=FreezeConfig(patterns=["head"]), decay=DecayConfig())
    assert "encoder.*.0.weight" in text and "3 x 3" in text and "frozen" in text
    assert " 45 " in text and " 37 " in text, "totals: all parameters, trained parameters"
