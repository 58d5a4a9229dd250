"""The contrastive loss in one process: against the formula, the CLIP of transformers and the predecessor's."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.losses.contrastive import Kind, PairEmbeddings, contrastive_loss
from tests.core.losses.pairs import examples, gradients, infonce, largest_difference, reference, two_sides

pytestmark = pytest.mark.numerics

KEYS = [1, 2, 3, 2, 5, 6, 3, 3]  # of texts: some occur more than once
KINDS: list[Kind] = ["infonce", "local", "siglip"]


class PredecessorLoss(nn.Module):
    """CSRef 2.0's CLIPLoss1D from its description: normalize, scale, cross-entropy both ways, mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        audio, text = audio / audio.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
        logits = self.logit_scale.exp() * audio @ text.t()
        wanted = torch.arange(len(logits))
        return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.t(), wanted)) / 2


def embeddings(num_pairs: int = 8, *, log_scale: float = 1.3, dtype: torch.dtype = torch.float32) -> PairEmbeddings:
    torch.manual_seed(num_pairs)
    speech, text = (F.normalize(torch.randn(num_pairs, 16, dtype=dtype), dim=1).requires_grad_() for _ in range(2))
    return PairEmbeddings(speech, text, torch.tensor([log_scale], dtype=dtype, requires_grad=True))


def test_the_worked_example() -> None:
    output = PairEmbeddings(torch.eye(2), torch.eye(2), torch.zeros(1))
    loss = contrastive_loss(output, text_keys=None, num_targets=2, group=None)
    assert float(loss.loss_sum) == pytest.approx(0.626523, abs=1e-6)
    assert {name: float(top) / float(bottom) for name, (top, bottom) in loss.metrics.items()} == {
        "speech_to_text_accuracy": 1.0,
        "text_to_speech_accuracy": 1.0,
        "logit_scale": 1.0,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_the_formula(kind: Kind) -> None:
    speech, text = examples(8)
    ours, theirs = two_sides(kind), two_sides(kind)
    loss = contrastive_loss(
        ours(speech, text), text_keys=torch.tensor(KEYS), num_targets=8, group=None, kind=kind
    ).loss_sum
    expected = reference(theirs(speech, text), KEYS, kind)
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert largest_difference(gradients(ours), gradients(theirs)) < 1e-12
    unmasked = contrastive_loss(ours(speech, text), text_keys=None, num_targets=8, group=None, kind=kind).loss_sum
    assert float(unmasked.detach()) > float(expected.detach()) * 1.02  # equal texts as wrong ones


def test_the_mean_is_the_clip_loss_of_transformers() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    output = embeddings()
    loss = contrastive_loss(output, text_keys=None, num_targets=8, group=None).loss_sum / 8
    expected = image_text_contrastive_loss(output.log_scale.exp() * output.text @ output.speech.t())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_the_mean_is_the_predecessors_on_one_rank() -> None:
    torch.manual_seed(0)
    audio, text = torch.randn(9, 16), torch.randn(9, 16)
    theirs = PredecessorLoss()
    output = PairEmbeddings(F.normalize(audio, dim=1), F.normalize(text, dim=1), theirs.logit_scale.detach()[None])
    loss = contrastive_loss(output, text_keys=None, num_targets=9, group=None).loss_sum / 9
    assert float(loss) == pytest.approx(float(theirs(audio, text).detach()), rel=1e-6)


def test_logits_are_exact_under_autocast_where_bf16_ones_are_not() -> None:
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(32, 64), dim=1)
    output = PairEmbeddings(rows, F.normalize(rows + 0.05 * torch.randn(32, 64), dim=1), torch.tensor([math.log(14)]))
    exact = float(infonce(*(x.double() for x in output[:3] if x is not None), list(range(32))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = float(contrastive_loss(output, text_keys=None, num_targets=32, group=None).loss_sum)
        logits = (output.log_scale.exp() * output.speech @ output.text.t()).float()
    rounded = float(-2 * logits.diagonal().sum() + logits.logsumexp(0).sum() + logits.logsumexp(1).sum()) / 2
    assert ours == pytest.approx(exact, rel=2e-4)
    assert abs(rounded / exact - 1) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_above_100_is_used_as_100_and_drawn_back(kind: Kind) -> None:
    bias = torch.tensor([-10.0], dtype=torch.float64) if kind == "siglip" else None

    def loss(log_scale: Tensor) -> Tensor:
        output = embeddings(dtype=torch.float64)._replace(log_scale=log_scale, bias=bias)
        found = contrastive_loss(output, text_keys=None, num_targets=8, group=None, kind=kind)
        assert float(found.metrics["logit_scale"][0]) <= 800 * (1 + 1e-12)
        return found.loss_sum

    at, above = (torch.tensor([math.log(100) + x], dtype=torch.float64, requires_grad=True) for x in (0.0, 0.25))
    value = loss(above)
    assert float(value.detach()) == pytest.approx(float(loss(at).detach()) + 8 * 0.25**2 / 2, rel=1e-12)
    value.backward()
    assert above.grad is not None
    assert float(above.grad) == pytest.approx(8 * 0.25, rel=1e-12)  # descent makes it fall
    assert torch.autograd.gradcheck(loss, [above])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_behind_the_targets_count_nothing(kind: Kind) -> None:
    speech, text = examples(8)
    few, all_rows = two_sides(kind), two_sides(kind)
    keys = torch.arange(8)
    first = contrastive_loss(few(speech[:5], text[:5]), text_keys=keys[:5], num_targets=5, group=None, kind=kind)
    padded = contrastive_loss(all_rows(speech, text), text_keys=keys, num_targets=5, group=None, kind=kind)
    first.loss_sum.backward()
    padded.loss_sum.backward()
    assert torch.equal(first.loss_sum, padded.loss_sum)
    assert largest_difference(gradients(few), gradients(all_rows)) < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_pairs_gives_zeros_to_every_parameter(kind: Kind) -> None:
    speech, text = examples(1)
    model = two_sides(kind)
    loss = contrastive_loss(model(speech, text), text_keys=torch.zeros(1), num_targets=0, group=None, kind=kind)
    loss.loss_sum.backward()
    assert float(loss.loss_sum.detach()) == 0
    assert [float(bottom) for _, bottom in loss.metrics.values()] == [0, 0, 0]
    found = gradients(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(not value.any() for value in found.values())


def test_accuracies_count_rows_whose_own_is_nearest() -> None:
    output = embeddings(12, log_scale=2.0)
    keys = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2])
    similar = (output.speech + 0.6 * output.text) @ output.text.t()
    of_speech, of_text = 0, 0
    for i in range(12):
        others = [j for j in range(12) if keys[j] != keys[i]]
        of_speech += int(all(similar[i, i] > similar[i, j] for j in others))
        of_text += int(all(similar[i, i] > similar[j, i] for j in others))
    assert 0 < of_speech < 12
    for kind in KINDS:
        bias = torch.zeros(1) if kind == "siglip" else None
        mixed = output._replace(speech=output.speech + 0.6 * output.text, bias=bias)
        metrics = contrastive_loss(mixed, text_keys=keys, num_targets=12, group=None, kind=kind).metrics
        found = [tuple(map(float, metrics[f"{name}_accuracy"])) for name in ("speech_to_text", "text_to_speech")]
        assert found == [(of_speech, 12), (of_text, 12)]


def test_a_bias_belongs_to_siglip() -> None:
    output = embeddings()
    with pytest.raises(ValueError, match="kind=siglip must be siglip for a model with a bias"):
        contrastive_loss(output, text_keys=None, num_targets=8, group=None, kind="siglip")
    with pytest.raises(ValueError, match="kind=infonce must be siglip"):
        contrastive_loss(output._replace(bias=torch.zeros(1)), text_keys=None, num_targets=8, group=None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_gives_all_the_same_is_never_right(kind: Kind) -> None:
    same = F.normalize(torch.ones(4, 8), dim=1)
    output = PairEmbeddings(same, same, torch.zeros(1), torch.zeros(1) if kind == "siglip" else None)
    metrics = contrastive_loss(output, text_keys=None, num_targets=4, group=None, kind=kind).metrics
    assert [float(metrics[f"{name}_accuracy"][0]) for name in ("speech_to_text", "text_to_speech")] == [0, 0]
