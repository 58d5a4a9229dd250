"""The own text encoder: padding changes nothing, order does."""

import pytest
import torch

from core.models.text_encoder import OwnTextConfig, TextEncoder
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(OwnTextConfig(dim=16, num_layers=2, num_heads=2, ffn_dim=32), vocab_size=20).eval()


def test_padding_changes_nothing() -> None:
    tokens = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 8, 0, 0]])
    both = encoder()(tokens, torch.tensor([5, 3]))
    alone = encoder()(tokens[1:, :3], torch.tensor([3]))
    other = encoder()(torch.tensor([[8, 9, 8, 11, 12]]), torch.tensor([3]))
    assert_close(both[1:], alone, rel=5e-6)
    assert_close(other, alone, rel=5e-6)


def test_order_counts() -> None:
    one, two = encoder()(torch.tensor([[3, 4, 5], [5, 4, 3]]), torch.tensor([3, 3]))
    assert (one - two).abs().max() > 1e-3


def test_every_parameter_learns_and_an_empty_text_is_finite() -> None:
    model = encoder().train()
    found = model(torch.tensor([[3, 4], [0, 0]]), torch.tensor([2, 0]))
    assert torch.isfinite(found).all()
    found.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert len(model.blocks()) == 2


def test_heads_must_be_even() -> None:
    with pytest.raises(ValueError, match="num_heads=4 must divide dim=12 into even heads"):
        OwnTextConfig(dim=12, num_heads=4)
