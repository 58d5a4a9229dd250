"""The formulas against torch's counter (forward passes) and against published counts."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from core import flops
from core.models.lmu.memory import LegendreMemory, chunk_size


def counted(function: Callable[[], object]) -> int:
    """What torch counts in one call; attention by its plain form, since the counter does not know the CPU's own."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        function()  # what is computed once and kept is not counted
        with FlopCounterMode(display=False) as counter:
            function()
    return counter.get_total_flops()


def test_linear_and_convolutions() -> None:
    x = torch.randn(1, 6, 50)
    assert flops.linear(num_rows=50, input_dim=6, output_dim=9) == counted(lambda: nn.Linear(6, 9)(x.mT))
    conv = nn.Conv1d(6, 8, 5, stride=2)
    assert flops.conv(num_outputs=23, in_channels=6, out_channels=8, kernel=5) == counted(lambda: conv(x))
    grouped = nn.Conv1d(6, 12, 3, groups=3)
    assert flops.conv(num_outputs=48, in_channels=6, out_channels=12, kernel=3, groups=3) == counted(lambda: grouped(x))
    conv = nn.Conv2d(1, 7, (3, 3), stride=2)
    assert flops.conv(num_outputs=2 * 24, in_channels=1, out_channels=7, kernel=9) == counted(lambda: conv(x[:, None]))


def test_attention_and_transformer_layer() -> None:
    q = torch.randn(1, 4, 30, 16)
    assert flops.attention(num_frames=30, dim=64) == counted(lambda: scaled_dot_product_attention(q, q, q))
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)
    found = counted(lambda: layer(torch.randn(1, 30, 64)))
    assert flops.transformer_layer(num_frames=30, dim=64, ffn_dim=96) == found


@pytest.mark.parametrize("left_context", [None, 0, 3, 50])
def test_causal_attention_counts_the_pairs_that_are_seen(left_context: int | None) -> None:
    pairs = sum(1 for i in range(20) for j in range(i + 1) if left_context is None or i - j <= left_context)
    assert flops.attention(num_frames=20, dim=8, causal=True, left_context=left_context) == 4 * pairs * 8


@pytest.mark.parametrize("num_frames", [20, 200])
def test_lmu_memory(num_frames: int) -> None:
    memory = LegendreMemory(order=12, theta=40.0)
    u = torch.randn(1, num_frames, 16)
    chunk = chunk_size(num_frames, order=12)
    found = counted(lambda: memory(u, form="chunked"))
    assert flops.lmu_chunked(num_frames=num_frames, order=12, channels=16, chunk=chunk) == pytest.approx(
        found, rel=0.03
    )
    found = counted(lambda: memory(u, form="recurrent"))  # the counter leaves out B u, a product by elements
    assert flops.lmu_recurrent(num_frames=num_frames, order=12, channels=16) == pytest.approx(found * 13 / 12)


def test_lmu_fft_by_hand() -> None:
    """8 points, one coefficient, one channel: 3 transforms of 2.5 x 8 x 3, and 5 complex products of 6."""
    assert flops.lmu_fft(num_frames=4, order=1, channels=1, size=8) == 3 * 60 + 5 * 6


def test_hubert_base_per_second_of_audio() -> None:
    """Multiply-adds of HuBERT base as published in GFLOP per audio second, at 15.6 s."""
    seconds, frames = 15.6, 15.6 * 50
    length, front_end, first = seconds * 16_000, 0.0, 0.0
    channels = 1
    for kernel, stride in [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]:
        length /= stride
        layer = flops.conv(num_outputs=length, in_channels=channels, out_channels=512, kernel=kernel)
        front_end, first, channels = front_end + layer, first or layer, 512
    encoder = 12 * (flops.transformer_layer(num_frames=frames, dim=768, ffn_dim=3072))
    attention = 12 * flops.attention(num_frames=frames, dim=768)
    positional = flops.conv(num_outputs=frames, in_channels=768, out_channels=768, kernel=128, groups=16)
    giga = [value / seconds / 1e9 for value in (front_end, encoder - attention, attention, positional)]
    assert giga == pytest.approx([4.91, 8.48, 1.44, 0.47], rel=0.01)
    training = flops.training(sum(giga), without_input_gradient=first / seconds / 1e9)
    assert training == pytest.approx(46.0, rel=0.01)


def test_language_model_is_the_usual_formula() -> None:
    """6 N + 6 d V + 6 L T d a token of a training step."""
    tokens, layers, dim, vocabulary, parameters = 2048, 16, 2048, 128_256, 973e6
    forward = flops.language_model(
        num_tokens=tokens, num_layers=layers, dim=dim, vocabulary=vocabulary, parameters=parameters
    )
    expected = 6 * parameters + 6 * dim * vocabulary + 6 * layers * tokens * dim
    assert flops.training(forward) / tokens == pytest.approx(expected)


@pytest.mark.parametrize(
    "name, teraflops",
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla V100-SXM2-32GB", 125),
    ],
)
def test_peaks_by_the_names_that_devices_give(name: str, teraflops: float) -> None:
    assert flops.peak(name) == teraflops * 1e12


def test_an_unknown_device_has_no_peak() -> None:
    assert flops.peak("cpu") is None and flops.peak("NVIDIA H200000") is None
    assert flops.peak("NVIDIA H200", flops.MEASURED) == 790e12
