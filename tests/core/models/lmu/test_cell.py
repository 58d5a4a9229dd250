"""The published cell: the fused form equals the definition, and the definition equals the public PyTorch package's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor

from core.models.lmu.cell import LMU, LMUCellConfig, LMUState
from tests.core.models.lmu.test_legendre import continuous_by_loops

pytestmark = pytest.mark.numerics

INPUTS, HIDDEN, ORDER, THETA = 5, 7, 6, 9.0


def build(**options: Any) -> LMU:
    torch.manual_seed(0)
    layer = LMU(LMUCellConfig(**{"input_dim": INPUTS, "hidden_dim": HIDDEN, "order": ORDER, "theta": THETA} | options))
    with torch.no_grad():
        for name, parameter in layer.cell.named_parameters():
            if name in ("e_m", "b_u", "b_h"):  # begin as zeros, which would hide their place in the formula
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.double()


def inputs(num_frames: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, num_frames, INPUTS, dtype=torch.float64, generator=generator)


def public_package_cell(x: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states and last memory of pytorch-lmu's LMUCell in a loop: eight products a frame."""
    continuous = (*continuous_by_loops(ORDER, THETA), np.ones((1, ORDER)), np.zeros((1,)))
    A, B = (torch.from_numpy(x) for x in scipy.signal.cont2discrete(continuous, dt=1.0, method="zoh")[:2])
    p = parameters
    h, m, states = x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), ORDER), []
    for t in range(x.size(1)):
        u = F.linear(x[:, t], p["e_x"]) + F.linear(h, p["e_h"]) + F.linear(m, p["e_m"])
        m = F.linear(m, A) + F.linear(u, B)
        h = torch.tanh(F.linear(x[:, t], p["W_x"]) + F.linear(h, p["W_h"]) + F.linear(m, p["W_m"]))
        states.append(h)
    return torch.stack(states, dim=1), m


@pytest.mark.parametrize("form", ["auto", "stepwise"])
def test_equals_the_public_package(form: Any) -> None:
    layer, x = build(), inputs().requires_grad_()
    parameters = dict(layer.cell.named_parameters())
    assert set(parameters) == {"e_x", "e_h", "e_m", "W_x", "W_h", "W_m"}
    ours, state = layer(x, form=form)
    expected, memory = public_package_cell(x, parameters)
    assert (ours - expected).abs().max() <= 1e-12
    assert (state.memory - memory).abs().max() <= 1e-12
    weight = torch.randn_like(expected)
    wanted = [x, *parameters.values()]
    ours_grad = torch.autograd.grad((ours * weight).sum() + state.memory.sum(), wanted)
    expected_grad = torch.autograd.grad((expected * weight).sum() + memory.sum(), wanted)
    for a, b in zip(ours_grad, expected_grad, strict=True):
        assert (a - b).abs().max() <= 1e-10


OPTIONS: list[dict[str, Any]] = [
    {"memory_channels": 3, "use_bias": True, "trainable_theta": True},
    {"learn_a": True, "learn_b": True},
    {"hidden_to_memory": False, "memory_to_memory": False},
    {"input_to_hidden": False, "discretizer": "euler", "order": 2, "theta": 30.0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_fused_equals_the_definition_with_every_option(options: dict[str, Any]) -> None:
    layer, x = build(**options), inputs(20).requires_grad_()
    start = layer.cell.initial_state(3)
    start = LMUState(torch.full_like(start.hidden, 0.1), torch.full_like(start.memory, 0.2), start.cell)
    wanted = [x, *layer.parameters()]
    results = []
    for form in ("auto", "stepwise"):
        y, state = layer(x, start, form=form)
        gradients = torch.autograd.grad(y.square().sum() + state.memory.sum() + state.hidden.sum(), wanted)
        results.append([y, state.memory, state.hidden, *gradients])
    for fused, definition in zip(*results, strict=True):
        assert (fused - definition).abs().max() <= 1e-10 * max(1.0, definition.abs().max().item())


def test_options_change_the_parameters_as_they_say() -> None:
    names = [set(dict(build(**options).cell.named_parameters())) for options in OPTIONS]
    assert names[0] == {"e_x", "e_h", "e_m", "W_x", "W_h", "W_m", "b_u", "b_h", "log_theta"}
    assert names[1] == {"e_x", "e_h", "e_m", "W_x", "W_h", "W_m", "A", "B"}
    assert names[2] == {"e_x", "W_x", "W_h", "W_m"}
    assert names[3] == {"e_x", "e_h", "e_m", "W_h", "W_m"}


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_other_hidden_cells_read_memory_and_input(kind: Any) -> None:
    layer, x = build(hidden_cell=kind), inputs(6)
    y, _ = layer(x)
    cell = layer.cell
    A, B = cell.system()
    h = c = torch.zeros(3, HIDDEN, dtype=torch.float64)
    m = torch.zeros(3, ORDER, dtype=torch.float64)
    for t in range(6):
        u = x[:, t] @ cell.e_x.T + h @ cell.e_h.T + m @ cell.e_m.T
        m = m @ A.T + u * B
        read = torch.cat([m, x[:, t]], dim=1)
        if kind == "gru":
            h = cell.hidden_cell(read, h)  # type: ignore[misc]
        else:
            h, c = cell.hidden_cell(read, (h, c))  # type: ignore[misc]
        assert (y[:, t] - h).abs().max() <= 1e-12


def test_without_a_hidden_cell_the_memory_is_the_output() -> None:
    layer = build(hidden_cell="none", hidden_dim=0, hidden_to_memory=False, memory_to_memory=False, memory_channels=2)
    x = inputs(6)
    y, state = layer(x)
    A, B = layer.cell.system()
    m = torch.zeros(3, ORDER, 2, dtype=torch.float64)
    for t in range(6):
        m = A @ m + B[:, None] * (x[:, t] @ layer.cell.e_x.T)[:, None]
        assert (y[:, t] - m.flatten(1)).abs().max() <= 1e-12
    assert torch.equal(state.memory, y[:, -1])
    assert y.size(2) == layer.cell.config.output_dim


@pytest.mark.parametrize("options", [{}, {"hidden_cell": "lstm"}])
def test_streaming_equals_the_whole(options: dict[str, Any]) -> None:
    layer, x = build(**options), inputs()
    whole, last = layer(x)
    state, parts = None, []
    for part in x.split([1, 17, 22], dim=1):
        y, state = layer(part, state)
        parts.append(y)
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-12
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(state or (), last, strict=True))


def test_dropout_masks_hold_for_all_frames_of_a_sequence_and_only_in_training() -> None:
    dropped = build(dropout=0.5).train()
    x = inputs()
    torch.manual_seed(3)
    y, _ = dropped(x)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones(3, INPUTS, dtype=torch.float64), 0.5)
    expected = build().eval()
    with torch.no_grad():  # the same mask written into each sequence's own e_x
        for row in range(3):
            expected.cell.e_x.copy_(dropped.cell.e_x * mask[row])
            assert (expected(x[row : row + 1])[0] - y[row : row + 1]).abs().max() <= 1e-12
    assert torch.equal(dropped.eval()(x)[0], build().eval()(x)[0])
    recurrent = build(recurrent_dropout=0.5)
    assert not torch.allclose(recurrent.train()(x)[0], recurrent.eval()(x)[0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"hidden_cell": "none"}, "hidden_dim=7 must be 0"),
        ({"hidden_cell": "none", "hidden_dim": 0}, "hidden_to_memory=true"),
        ({"trainable_theta": True, "learn_a": True}, "trainable_theta=true"),
        ({"discretizer": "euler"}, "discretizer=euler is unstable"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
