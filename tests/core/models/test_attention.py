"""Self-attention against a softmax written out, with its masks and rotations."""

import numpy as np
import pytest
import torch

from core.models.attention import SelfAttention

pytestmark = pytest.mark.numerics

DIM, HEADS, FRAMES = 8, 2, 9


def by_formula(layer: SelfAttention, x: np.ndarray, is_seen: np.ndarray) -> np.ndarray:
    """x (T, dim), is_seen (T, T) -> (T, dim), one query and head at a time."""
    weight, bias = layer.to_qkv.weight.detach().numpy(), layer.to_qkv.bias.detach().numpy()
    q, k, v = np.split(x @ weight.T + bias, 3, axis=1)
    size, mixed = DIM // HEADS, np.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(x)):
            scores = np.array([rotated_product(q[t, part], k[s, part], s - t, layer.rotary) for s in range(len(x))])
            scores = np.where(is_seen[t], scores / np.sqrt(size), -np.inf)
            share = np.exp(scores - scores.max())
            mixed[t, part] = share / share.sum() @ v[:, part]
    return mixed @ layer.output.weight.detach().numpy().T + layer.output.bias.detach().numpy()


def rotated_product(q: np.ndarray, k: np.ndarray, distance: int, rotary: bool) -> float:
    """Re(conj(q) k e^(i distance frequency)), the pairs (i, i + half) as complex numbers: only the distance counts."""
    if not rotary:
        return float(q @ k)
    half = len(q) // 2
    frequency = 10000.0 ** (-np.arange(half) / half)
    q, k = q[:half] + 1j * q[half:], k[:half] + 1j * k[half:]
    return float((np.conj(q) * k * np.exp(1j * distance * frequency)).real.sum())


def build(*, causal: bool, left_context: int | None = None, rotary: bool = True) -> SelfAttention:
    torch.manual_seed(0)
    options = {"num_heads": HEADS, "dropout": 0.0, "causal": causal, "left_context": left_context, "rotary": rotary}
    return SelfAttention(DIM, **options).double()  # type: ignore[arg-type]


def test_equals_the_formula() -> None:
    x = torch.randn(2, FRAMES, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([FRAMES, 5])
    is_valid = torch.arange(FRAMES) < lengths[:, None]
    query, key = np.arange(FRAMES)[:, None], np.arange(FRAMES)[None, :]
    past = key <= query
    for causal, left_context, seen in (
        (False, None, np.ones_like(past)),
        (True, None, past),
        (True, 3, past & (query - key <= 3)),
    ):
        for rotary in (False, True):
            layer = build(causal=causal, left_context=left_context, rotary=rotary)
            y = layer(x, is_valid).detach().numpy()
            for row, n in enumerate(lengths.tolist()):
                expected = by_formula(layer, x[row, :n].numpy(), seen[:n, :n])
                assert np.abs(y[row, :n] - expected).max() <= 1e-6  # angles are float32


def test_an_empty_sequence_is_finite() -> None:
    y = build(causal=False)(torch.ones(1, FRAMES, DIM, dtype=torch.float64), torch.zeros(1, FRAMES, dtype=torch.bool))
    assert y.isfinite().all()


def test_the_cache_of_a_limited_context_does_not_grow() -> None:
    layer, state = build(causal=True, left_context=3), None
    for _ in range(5):
        _, state = layer.stream(torch.ones(1, 4, DIM, dtype=torch.float64), state)
    assert state is not None
    assert state.keys.size(2) == 3
    assert state.num_seen == 20
