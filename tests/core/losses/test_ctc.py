"""The CTC loss equals the sum over all paths, adds up, and gives what cannot be spelled no part in anything."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from core.losses.ctc import ctc_loss, is_feasible, required_frames

pytestmark = pytest.mark.numerics


def brute_force(logits: Tensor, targets: list[int]) -> Tensor:
    """-ln of the summed probability of all paths (T, V) that collapse to the targets."""
    log_probs = logits.log_softmax(-1)
    paths = [
        torch.stack([log_probs[t, symbol] for t, symbol in enumerate(path)]).sum()
        for path in itertools.product(range(logits.shape[1]), repeat=len(logits))
        if [symbol for symbol, _ in itertools.groupby(path) if symbol] == targets
    ]
    return -torch.stack(paths).logsumexp(0)


@pytest.mark.parametrize("targets", [[1], [1, 1], [2, 3], [1, 2, 1], [3, 3, 1], [1, 2, 3, 1], [2, 3, 1, 2, 3]])
def test_equals_the_sum_over_all_paths(targets: list[int]) -> None:
    torch.manual_seed(len(targets))
    logits = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([5]), torch.tensor([targets]), torch.tensor([len(targets)])).loss_sum
    reference = brute_force(logits[0], targets)
    assert abs(float(loss.detach() - reference.detach())) <= 1e-10
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(reference, logits)
    assert (ours - theirs).abs().max() <= 1e-10


def test_worked_value() -> None:
    output = ctc_loss(torch.zeros(1, 2, 2), torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1]))
    assert output.loss_sum.item() == pytest.approx(-math.log(3 / 4), abs=1e-6)
    assert output.loss_sum.item() == pytest.approx(0.287682, abs=1e-6)


def test_feasibility_is_what_some_path_can_spell() -> None:
    for num_frames in range(5):
        spelled = {
            tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)
            for path in itertools.product(range(3), repeat=num_frames)
        }
        for length in range(1, 5):
            for targets in itertools.product((1, 2), repeat=length):
                assert is_feasible(num_frames, targets) == (targets in spelled)
    assert not is_feasible(9, [])
    assert required_frames([1, 1, 1, 2]) == 6
    assert is_feasible(6, torch.tensor([1, 1, 1, 2]))


def mixed_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows: just fits; one frame short because of a repeat; no targets; far too short; no frames."""
    torch.manual_seed(0)
    logits = torch.randn(5, 6, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 2, 2, 0], [1, 2, 2, 3], [0, 0, 0, 0], [3, 2, 1, 1], [1, 0, 0, 0]])
    return logits, torch.tensor([4, 4, 6, 2, 0]), targets, torch.tensor([3, 4, 0, 4, 1])


def test_what_does_not_count_adds_exactly_nothing() -> None:
    logits, lengths, targets, target_lengths = mixed_batch()
    output = ctc_loss(logits, lengths, targets, target_lengths)
    alone = ctc_loss(logits[:1], lengths[:1], targets[:1], target_lengths[:1])
    assert output.loss_sum.item() == alone.loss_sum.item()
    (gradient,) = torch.autograd.grad(output.loss_sum, logits)
    assert (gradient[0, :4] != 0).all()
    assert (gradient[1:] == 0).all()
    infeasible, utterances = output.metrics["infeasible"]
    assert (int(infeasible), int(utterances)) == (3, 4)
    counted = [
        is_feasible(int(n), row[:u]) for n, row, u in zip(lengths, targets, target_lengths.tolist(), strict=True)
    ]
    assert counted == [True, False, False, False, False]


def test_batch_without_targets_gives_zero_and_zero_gradients() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    output = ctc_loss(logits, torch.tensor([3, 1]), torch.zeros(2, 0, dtype=torch.long), torch.zeros(2).long())
    (gradient,) = torch.autograd.grad(output.loss_sum, logits)
    assert output.loss_sum.item() == 0.0
    assert (gradient == 0).all()


def test_padding_changes_nothing() -> None:
    logits, lengths, targets, target_lengths = mixed_batch()
    with torch.no_grad():
        padded = torch.cat([logits, torch.full((5, 3, 4), 50.0, dtype=torch.float64)], dim=1)
        padded[3, 2:] = -70.0
    padded.requires_grad_()
    wide = torch.cat([targets, torch.full((5, 2), 3)], dim=1)
    output = ctc_loss(padded, lengths, wide, target_lengths)
    (gradient,) = torch.autograd.grad(output.loss_sum, padded)
    reference = ctc_loss(logits, lengths, targets, target_lengths)
    (expected,) = torch.autograd.grad(reference.loss_sum, logits)
    assert output.loss_sum.item() == reference.loss_sum.item()
    assert torch.equal(gradient[:, :6], expected)
    assert (gradient[:, 6:] == 0).all()


def test_sums_over_utterances() -> None:
    logits = torch.randn(3, 6, 4, dtype=torch.float64)
    rows = [(logits[i : i + 1], torch.tensor([6]), torch.tensor([[1, 2]]), torch.tensor([2])) for i in range(3)]
    together = ctc_loss(*(torch.cat(columns) for columns in zip(*rows, strict=True)))
    assert together.loss_sum.item() == pytest.approx(sum(ctc_loss(*row).loss_sum.item() for row in rows), abs=1e-12)


def test_autocast_does_not_lower_the_precision() -> None:
    torch.manual_seed(1)
    features, weight = torch.randn(2, 50, 8), torch.randn(8, 30)
    targets, lengths = torch.randint(1, 30, (2, 12)), torch.tensor([50, 40])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = features @ weight
        loss = ctc_loss(logits, lengths, targets, torch.tensor([12, 9])).loss_sum
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    exact = ctc_loss(logits.double(), lengths, targets, torch.tensor([12, 9])).loss_sum
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
