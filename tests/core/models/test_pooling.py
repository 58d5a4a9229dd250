"""AttFlat against its description written anew; and what is behind the end of a clip changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.models.pooling import AttFlat, PoolingConfig, build_pooling
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics


class Predecessor(nn.Module):
    """CSRef 2.0's AttFlat from its description: -1e4 where padded, softmax over time, a chunk of channels a glimpse."""

    def __init__(self, dim: int, hidden: int, glimpses: int, output: int) -> None:
        super().__init__()
        self.to_hidden, self.to_logits = nn.Linear(dim, hidden), nn.Linear(hidden, glimpses)
        self.merge, self.glimpses = nn.Linear(dim, output), glimpses

    def forward(self, x: Tensor, is_padding: Tensor) -> Tensor:
        logits = self.to_logits(torch.relu(self.to_hidden(x)))
        weights = torch.softmax(logits.masked_fill(is_padding[:, :, None], -1e4), dim=1)
        size = x.size(2) // self.glimpses
        pieces = []
        for g in range(self.glimpses):
            piece = torch.zeros(len(x), size)
            for t in range(x.size(1)):
                piece = piece + weights[:, t, g : g + 1] * x[:, t, g * size : (g + 1) * size]
            pieces.append(piece)
        return self.merge(torch.cat(pieces, dim=1))


@pytest.mark.parametrize("glimpses", [1, 2])
def test_att_flat_is_the_predecessors_with_its_weights(glimpses: int) -> None:
    torch.manual_seed(0)
    theirs = Predecessor(8, 4, glimpses, 6)
    ours = AttFlat(PoolingConfig(glimpses=glimpses), 8, output_dim=6).eval()
    names = {"mlp.fc.linear": "to_hidden", "mlp.linear": "to_logits", "linear_merge": "merge"}
    state = theirs.state_dict()
    ours.load_state_dict({f"{a}.{end}": state[f"{b}.{end}"] for a, b in names.items() for end in ("weight", "bias")})
    x, lengths = torch.randn(3, 7, 8), torch.tensor([7, 4, 1])
    expected = theirs(x, torch.arange(7) >= lengths[:, None])
    assert_close(ours(x, lengths), expected, rel=2e-6)


@pytest.mark.parametrize("config", [{}, {"glimpses": 4}, {"kind": "mean"}, {"kind": "cls"}], ids=str)
def test_frames_behind_the_end_change_nothing_and_get_no_gradient(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    pooling = build_pooling(PoolingConfig(**config), 8, output_dim=8).eval()
    x, lengths = torch.randn(2, 5, 8), torch.tensor([5, 3])
    longer = torch.cat([x, torch.full((2, 3, 8), 1e4)], dim=1)
    longer[1, 3:] = torch.nan
    longer.requires_grad_()
    pooled = pooling(longer, lengths)
    assert_close(pooled, pooling(x, lengths), rel=2e-6)
    pooled.sum().backward()
    assert longer.grad is not None
    assert not longer.grad[0, 5:].any() and not longer.grad[1, 3:].any()
    assert longer.grad[0, 0].any()


def test_mean_and_first() -> None:
    x, lengths = torch.arange(12.0).view(1, 6, 2), torch.tensor([3])
    assert build_pooling(PoolingConfig(kind="mean"), 2, output_dim=2)(x, lengths).tolist() == [[2.0, 3.0]]
    assert build_pooling(PoolingConfig(kind="cls"), 2, output_dim=2)(x, lengths).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("kind", ["att_flat", "mean", "cls"])
def test_an_empty_row_stays_finite(kind: Any) -> None:
    pooling = build_pooling(PoolingConfig(kind=kind), 4, output_dim=4)
    assert torch.isfinite(pooling(torch.zeros(1, 2, 4), torch.tensor([0]))).all()


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="must be left out with kind=mean"):
        PoolingConfig(kind="mean", glimpses=2)
    with pytest.raises(ValueError, match=r"pooling\.glimpses=3 must divide"):
        AttFlat(PoolingConfig(glimpses=3), 8, output_dim=8)
