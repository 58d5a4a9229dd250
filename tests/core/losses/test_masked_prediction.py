"""The loss of masked frames against its definition and the head of torchaudio, in numbers, gradients and CPU time."""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import LogitGenerator

from core.losses.masked_prediction import (
    MaskedPredictionConfig,
    frame_accuracies,
    frames_to_predict,
    masked_prediction_loss,
    prediction_loss,
)
from core.models.hubert.config import HubertConfig
from core.models.hubert.model import ClusterHead

pytestmark = pytest.mark.numerics


def test_the_worked_value() -> None:
    output = masked_prediction_loss(torch.zeros(1, 1, 2), torch.tensor([[1]]), torch.tensor([0.05]))
    assert float(output.loss_sum) == pytest.approx(math.log(2) + 0.5)
    assert output.metrics["feature_penalty"] == (pytest.approx(0.05), 1.0)


def test_it_is_its_definition_by_loops() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((2, 5, 4)), rng.integers(4, size=(2, 5))
    penalties = rng.random(2)
    expected, correct = 0.0, 0
    for b in range(2):
        for k in range(5):
            row = logits[b, k]
            expected -= row[targets[b, k]] - math.log(sum(math.exp(value) for value in row))
            correct += int(max(range(4), key=row.__getitem__) == targets[b, k])
        expected += 3.0 * 5 * penalties[b]
    output = masked_prediction_loss(
        torch.tensor(logits, dtype=torch.float32), torch.tensor(targets), torch.tensor(penalties), penalty_weight=3.0
    )
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-6)
    assert (int(output.metrics["masked_accuracy"][0]), output.metrics["masked_accuracy"][1]) == (correct, 10.0)
    assert float(output.metrics["masked_cross_entropy"][0]) == pytest.approx(expected - 15 * penalties.sum(), rel=1e-6)


def test_the_sum_does_not_depend_on_which_clips_share_a_batch() -> None:
    torch.manual_seed(0)
    logits, targets, penalties = torch.randn(4, 3, 6), torch.randint(6, (4, 3)), torch.rand(4)
    whole = masked_prediction_loss(logits, targets, penalties)
    parts = [masked_prediction_loss(logits[r : r + 2], targets[r : r + 2], penalties[r : r + 2]) for r in (0, 2)]
    torch.testing.assert_close(whole.loss_sum, parts[0].loss_sum + parts[1].loss_sum)
    for name, (numerator, denominator) in whole.metrics.items():
        assert float(numerator) == pytest.approx(sum(float(part.metrics[name][0]) for part in parts), rel=1e-6)
        assert denominator == sum(part.metrics[name][1] for part in parts)


def test_unmasked_frames_count_by_their_weight() -> None:
    """Against a loop over the frames; clip 1 has two frames less, whose labels and logits mean nothing."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 5), torch.randint(5, (2, 6))
    num_frames, masked_frames, penalties = torch.tensor([6, 4]), torch.tensor([[1, 4], [0, 3]]), torch.rand(2)
    config = MaskedPredictionConfig(unmasked_weight=0.25, penalty_weight=2.0)
    expected = 2.0 * 2 * float(penalties.sum())
    num_open = num_correct = 0
    for b in range(2):
        for t in range(int(num_frames[b])):
            one = -float(logits[b, t].log_softmax(-1)[labels[b, t]])
            is_masked = t in masked_frames[b].tolist()
            expected += one if is_masked else 0.25 * one
            num_open += not is_masked
            num_correct += not is_masked and int(logits[b, t].argmax()) == int(labels[b, t])
    assert frames_to_predict(labels, masked_frames, config).tolist() == [list(range(6))] * 2
    output = prediction_loss(logits, labels, num_frames, masked_frames, penalties, config=config)
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-6)
    assert tuple(map(int, output.metrics["unmasked_accuracy"])) == (num_correct, num_open)


def test_without_weight_only_masked_frames_are_predicted() -> None:
    torch.manual_seed(0)
    labels, masked_frames, config = torch.randint(5, (2, 6)), torch.tensor([[1, 4], [0, 3]]), MaskedPredictionConfig()
    logits, penalties = torch.randn(2, 2, 5), torch.rand(2)
    assert frames_to_predict(labels, masked_frames, config) is masked_frames
    output = prediction_loss(logits, labels, torch.tensor([6, 4]), masked_frames, penalties, config=config)
    wanted = masked_prediction_loss(logits, labels.gather(1, masked_frames), penalties)
    assert output.loss_sum == wanted.loss_sum and set(output.metrics) == set(wanted.metrics)


def test_no_masked_frames_are_a_loss_of_zero_with_gradients() -> None:
    logits = torch.zeros(2, 0, 5, requires_grad=True)
    penalties = torch.ones(2, requires_grad=True)
    output = masked_prediction_loss(logits, torch.zeros(2, 0, dtype=torch.long), penalties)
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0 and penalties.grad is not None and not penalties.grad.any()


def test_accuracy_of_masked_and_other_frames_by_loops() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((3, 6, 4)), rng.integers(4, size=(3, 6))
    num_frames, masked = [6, 4, 1], [[0, 5], [1, 3], [0, 0]]
    expected = {True: [0, 0], False: [0, 0]}
    for b in range(3):
        for t in range(num_frames[b]):
            count = expected[t in masked[b]]
            count[0] += int(logits[b, t].argmax() == labels[b, t])
            count[1] += 1
    found = frame_accuracies(*map(torch.tensor, (logits, labels, num_frames, masked)))
    assert [int(value) for value in found["masked_accuracy"]] == expected[True]
    assert [int(value) for value in found["unmasked_accuracy"]] == expected[False]


def heads(num_classes: int, final_dim: int, dim: int) -> tuple[ClusterHead, LogitGenerator]:
    torch.manual_seed(0)
    ours = ClusterHead(
        HubertConfig(dim=dim, num_heads=1, position_groups=1, final_dim=final_dim, num_classes=num_classes)
    )
    theirs = LogitGenerator(dim, num_classes, final_dim, skip_masked=False, skip_nomask=True)
    theirs.final_proj.load_state_dict(ours.projection.state_dict())
    theirs.label_embeddings.data.copy_(ours.label_embeddings.data)
    return ours, theirs


def losses(
    ours: ClusterHead, theirs: LogitGenerator, hidden: torch.Tensor, labels: torch.Tensor
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    is_masked = torch.ones_like(labels, dtype=torch.bool)

    def our_loss() -> torch.Tensor:
        return masked_prediction_loss(ours(hidden), labels, torch.zeros(len(labels))).loss_sum

    def their_loss() -> torch.Tensor:
        logits, _ = theirs(hidden, labels, is_masked, ~is_masked)
        return F.cross_entropy(logits, torch.zeros(labels.numel(), dtype=torch.long), reduction="sum")

    return our_loss, their_loss


def test_the_head_is_torchaudios_in_loss_and_gradients() -> None:
    ours, theirs = heads(50, 64, 96)
    hidden, labels = torch.randn(2, 100, 96), torch.randint(50, (2, 100))
    our_loss, their_loss = losses(ours, theirs, hidden, labels)
    one, two = our_loss(), their_loss()
    torch.testing.assert_close(one, two, rtol=1e-6, atol=0)
    one.backward()
    two.backward()
    for own, other in [
        (ours.label_embeddings, theirs.label_embeddings),
        (ours.projection.weight, theirs.final_proj.weight),
    ]:
        assert float((own.grad - other.grad).norm() / other.grad.norm()) <= 1e-5


def test_the_head_is_20_times_as_fast() -> None:
    """A sixteenth of the size of the requirement, which tests/bench/hubert.py measures."""
    ours, theirs = heads(250, 128, 128)
    hidden, labels = torch.randn(2, 250, 128), torch.randint(250, (2, 250))
    our_loss, their_loss = losses(ours, theirs, hidden, labels)
    our_loss().backward()
    their_s = cpu_s(their_loss)
    assert their_s >= 20 * min(cpu_s(our_loss) for _ in range(5))


def cpu_s(loss: Callable[[], torch.Tensor]) -> float:
    begin = time.process_time()
    loss().backward()
    return time.process_time() - begin
