"""Cross-entropy over classes of clips: against numpy, row by row, and with rows that have no class."""

import numpy as np
import pytest
import torch

from core.losses.classification import NO_CLASS, classification_loss


def test_the_worked_value() -> None:
    output = classification_loss(torch.tensor([[0.0, 0.0], [0.0, np.log(3)]]), torch.tensor([0, 1]))
    assert output.loss_sum.item() == pytest.approx(0.980829, abs=1e-6)
    assert output.loss_sum.item() == pytest.approx(np.log(2) + np.log(4 / 3), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_numpy_row_by_row(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 4).to(dtype).requires_grad_()
    classes = torch.tensor([0, 1, NO_CLASS, 3, 2, NO_CLASS, 1, 1, 0])
    output = classification_loss(logits, classes)
    output.loss_sum.backward()
    total, num_correct, gradient = 0.0, 0, np.zeros((9, 4))
    for row, label in enumerate(classes.tolist()):
        if label == NO_CLASS:
            continue
        values = logits[row].detach().double().numpy()
        shares = np.exp(values) / np.exp(values).sum()
        total -= np.log(shares[label])
        num_correct += int(values.argmax() == label)
        gradient[row] = shares - np.eye(4)[label]
    assert output.loss_sum.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert output.loss_sum.item() == pytest.approx(total, rel=1e-12 if dtype == torch.float64 else 1e-6)
    assert [float(one) for one in output.metrics["accuracy"]] == [num_correct, 7]
    assert logits.grad is not None
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-8}[dtype]
    np.testing.assert_allclose(logits.grad.double().numpy(), gradient, atol=tolerance)


def test_a_dummy_row_adds_exactly_nothing() -> None:
    logits = torch.randn(1, 3, requires_grad=True)
    output = classification_loss(logits, torch.tensor([NO_CLASS]))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0
    assert logits.grad is not None and not logits.grad.any()
    assert [float(one) for one in output.metrics["accuracy"]] == [0, 0]


def test_autocast_does_not_round_it() -> None:
    logits, classes = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classification_loss(logits, classes).loss_sum
    assert torch.equal(found, torch.nn.functional.cross_entropy(logits, classes, reduction="sum"))
