"""Masked convolutions against torch's own on single sequences padded by hand."""

import pytest
import torch
import torch.nn.functional as F

from core.models.subsampling import ConvSubsampling, DepthwiseConv, valid_frames
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind, kernel", [("conv1d", 5), ("conv2d", 3)])
def test_subsampling_equals_two_convolutions_of_the_bare_sequence(kind: str, kernel: int, causal: bool) -> None:
    torch.manual_seed(0)
    layer = ConvSubsampling(kind=kind, input_dim=10, channels=4, output_dim=6, causal=causal)  # type: ignore[arg-type]
    x = torch.randn(3, 30, 10)
    lengths = torch.tensor([30, 17, 1])
    y, y_lengths = layer(x, lengths)
    assert y_lengths.tolist() == [8, 5, 1]
    before = kernel - 1 if causal else kernel // 2
    for row, (n, n_out) in enumerate(zip(lengths.tolist(), y_lengths.tolist(), strict=True)):
        z = x[row : row + 1, :n]
        z = z[:, None] if kind == "conv2d" else z.transpose(1, 2)
        for conv in layer.convs:
            side = (0, 0, before, kernel - 1 - before) if kind == "conv2d" else (before, kernel - 1 - before)
            z = F.gelu(conv(F.pad(z, side)))
        expected = layer.projection(z.transpose(1, 2).flatten(2))
        assert expected.size(1) == n_out
        assert_close(y[row, :n_out], expected[0], rel=1e-6)


@pytest.mark.parametrize("kernel, causal", [(5, False), (5, True), (4, True), (1, False)])
def test_depthwise_convolution_is_a_sum_of_shifted_frames(kernel: int, causal: bool) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv(3, kernel=kernel, causal=causal).double()
    x, n = torch.randn(1, 20, 3, dtype=torch.float64), 15
    y = layer(x, valid_frames(torch.tensor([n]), 20))
    weight, bias = layer.conv.weight[:, 0, 0], layer.conv.bias
    for t in range(n):
        first = t - (kernel - 1 if causal else kernel // 2)
        terms = [weight[:, k] * x[0, first + k] for k in range(kernel) if 0 <= first + k < n]
        assert_close(y[0, t], torch.stack(terms).sum(0) + bias, rel=1e-12)
