"""Dropout by counting."""

import pytest
import torch

from core.models.dropout import Dropout

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_its_share_independently_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1000, 1001))
    is_dropped = y == 0
    sigma = (p * (1 - p) / y.numel()) ** 0.5
    assert abs(is_dropped.double().mean().item() - p) < 5 * sigma
    assert y[~is_dropped].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)
    for lag in (1, 2, 3, 4):  # four elements share one draw
        together = (is_dropped[:, lag:] & is_dropped[:, :-lag]).double().mean().item()
        assert abs(together - p * p) < 10 * sigma
    places = is_dropped.flatten()[: y.numel() // 4 * 4].view(-1, 4).double().mean(0)
    assert (places - p).abs().max().item() < 10 * sigma


def test_follows_the_seed_and_gradients_follow_the_mask() -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        x = torch.randn(3, 5, requires_grad=True)
        y = Dropout(0.4)(x)
        y.sum().backward()
        assert x.grad is not None
        assert torch.allclose(x.grad * x, y)
        outputs.append(y)
    assert torch.equal(*outputs)


def test_is_nothing_in_evaluation_or_without_a_share() -> None:
    x = torch.randn(4, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
