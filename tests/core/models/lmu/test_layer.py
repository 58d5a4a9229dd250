"""The parallel LMU against its formula, in both directions of time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from core.models.lmu.layer import ParallelLMU
from tests.closeness import assert_close
from tests.core.models.lmu.test_memory import remember

pytestmark = pytest.mark.numerics

LENGTHS = torch.tensor([40, 23])


def weights(linear: torch.nn.Module) -> np.ndarray:
    assert isinstance(linear, torch.nn.Linear)
    return linear.weight.detach().numpy()


def by_formula(layer: ParallelLMU, x: np.ndarray) -> np.ndarray:
    """h (T, hidden) of one sequence x (T, inputs), each direction from its own start."""
    order, theta = layer.memory.order, layer.memory.theta
    u = np.maximum(x @ weights(layer.to_memory).T + layer.to_memory.bias.detach().numpy(), 0)
    h = x @ weights(layer.from_input).T + layer.from_input.bias.detach().numpy()
    for direction, part in enumerate(np.split(u, layer.num_directions, axis=1)):
        part = part[::-1] if direction else part
        m = remember(np.ascontiguousarray(part)[None], order=order, theta=theta)[0].reshape(len(x), -1)
        read = m @ weights(layer.from_memory[direction]).T
        h = h + (read[::-1] if direction else read)
    return np.maximum(h, 0)


def build(**options: object) -> ParallelLMU:
    torch.manual_seed(0)
    return ParallelLMU(input_dim=5, hidden_dim=7, order=6, theta=20.0, memory_channels=4, **options).double()  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(40) < LENGTHS[:, None]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["auto", "fft", "chunked", "recurrent"])
def test_layer_equals_its_formula_whatever_the_padding(bidirectional: bool, form: str) -> None:
    layer = build(bidirectional=bidirectional, form=form)
    x, is_valid = batch()
    h = layer(x, is_valid).detach().numpy()
    for row, length in enumerate(LENGTHS.tolist()):
        expected = by_formula(layer, x[row, :length].numpy())
        assert np.abs(h[row, :length] - expected).max() <= 1e-12


def test_without_the_mask_padding_leaks_backwards() -> None:
    layer = build(bidirectional=True)
    x, is_valid = batch()
    assert (layer(x)[1, :23] - layer(x, is_valid)[1, :23]).abs().max() > 1e-3


def test_any_length_works_where_a_fixed_impulse_response_fails() -> None:
    layer = build(form="fft")
    for num_frames in (3, 90, 100):
        assert layer(torch.ones(1, num_frames, 5, dtype=torch.float64)).shape == (1, num_frames, 7)
    fixed_H, U = torch.fft.rfft(torch.ones(100), n=200), torch.fft.rfft(torch.ones(90), n=180)
    with pytest.raises(RuntimeError, match="must match the size"):  # the predecessor keeps H of its seq_len
        _ = U * fixed_H


def test_streaming_equals_the_whole() -> None:
    layer, x = build(), batch()[0]
    state, parts = None, []
    for part in x.split([1, 13, 2, 24], dim=1):
        y, state = layer.stream(part, state)
        parts.append(y)
    assert_close(torch.cat(parts, dim=1), layer(x), rel=1e-12)
    with pytest.raises(ValueError, match="bidirectional=true"):
        build(bidirectional=True).stream(x, None)


def test_odd_channels_cannot_be_split_in_two_directions() -> None:
    with pytest.raises(ValueError, match="memory_channels=3 must be even"):
        ParallelLMU(input_dim=2, hidden_dim=2, order=2, theta=5.0, memory_channels=3, bidirectional=True)
