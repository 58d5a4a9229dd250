"""The sigmoid loss in one process; test_contrastive_on_ranks.py has the ring."""

import pytest
import torch
from torch import Tensor

from core.losses.contrastive import PairEmbeddings, contrastive_loss
from tests.core.losses.pairs import siglip

pytestmark = pytest.mark.numerics


def test_the_worked_example() -> None:
    output = PairEmbeddings(torch.eye(2), torch.eye(2), torch.zeros(1), torch.zeros(1))
    loss = contrastive_loss(output, text_keys=None, num_targets=2, group=None, kind="siglip").loss_sum
    assert float(loss) == pytest.approx(2.012818, abs=1e-6)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.5), (100.0, -3.0)])
def test_the_double_loop(scale: float, bias: float) -> None:
    torch.manual_seed(0)
    speech, text = (torch.nn.functional.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    log_scale, shift = torch.tensor([scale]).log(), torch.tensor([bias])
    output = PairEmbeddings(speech, text, log_scale, shift)
    keys = [4, 1, 1, 2, 9, 4, 4]
    loss = contrastive_loss(output, text_keys=torch.tensor(keys), num_targets=7, group=None, kind="siglip").loss_sum
    expected = siglip(speech.double(), text.double(), log_scale.double(), shift.double(), keys)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_gradients_are_numerical_ones_also_without_texts_that_learn() -> None:
    torch.manual_seed(0)
    speech, text = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    scalars = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.4, -1.0)]

    def loss(speech: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        output = PairEmbeddings(speech, text, log_scale, bias)
        keys = torch.tensor([1, 2, 1, 3])
        return contrastive_loss(output, text_keys=keys, num_targets=4, group=None, kind="siglip").loss_sum

    assert torch.autograd.gradcheck(loss, [speech.requires_grad_(), *scalars])
