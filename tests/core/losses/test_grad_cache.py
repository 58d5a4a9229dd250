"""GradCache: the gradients of the whole batch, dropout drawn once, and the memory of one chunk."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from core.losses.contrastive import Kind, PairEmbeddings, contrastive_loss
from core.losses.grad_cache import Encode, grad_cache_loss
from tests.core.losses.pairs import TwoSides, examples, gradients, largest_difference, two_sides

pytestmark = pytest.mark.numerics

KEYS = torch.tensor([1, 2, 3, 2, 5, 6, 3, 3, 9, 10])


def run(encode: Encode, *, num_rows: int, chunk_rows: int, kind: Kind = "infonce", num_targets: int | None = None):
    """All parts called and sent backward; the sums and the metrics of the first."""
    keys = KEYS if num_rows == len(KEYS) else None
    loss = partial(
        contrastive_loss, text_keys=keys, num_targets=num_targets or num_rows, group=None, kind=kind
    )  # fmt: skip
    outputs = []
    for part in grad_cache_loss(encode, loss, num_rows=num_rows, chunk_rows=chunk_rows, group=None):
        outputs.append(part())
        outputs[-1].loss_sum.backward()
    return [float(output.loss_sum) for output in outputs], outputs


def encoder(model: TwoSides) -> Encode:
    speech, text = examples(10)
    return lambda rows: model(speech[rows], text[rows])


@pytest.mark.parametrize("kind", ["infonce", "siglip"])
@pytest.mark.parametrize("chunk_rows", [1, 4, 10, 99])
def test_gradients_are_those_of_the_whole_batch(chunk_rows: int, kind: Kind) -> None:
    cached, whole = two_sides(kind), two_sides(kind)
    sums, outputs = run(encoder(cached), num_rows=10, chunk_rows=chunk_rows, kind=kind, num_targets=9)
    expected = contrastive_loss(whole(*examples(10)), text_keys=KEYS, num_targets=9, group=None, kind=kind)
    expected.loss_sum.backward()
    assert len(sums) == -(-10 // chunk_rows)
    assert sums[0] == pytest.approx(float(expected.loss_sum), rel=1e-12)
    assert sums[1:] == [0.0] * (len(sums) - 1)
    assert {k: tuple(map(float, v)) for k, v in outputs[0].metrics.items()} == {
        k: tuple(map(float, v)) for k, v in expected.metrics.items()
    }
    assert all(not output.metrics for output in outputs[1:])
    assert largest_difference(gradients(cached), gradients(whole)) < 1e-12


@pytest.mark.parametrize("chunk_rows", [1, 4, 10])
def test_dropout_is_drawn_once(chunk_rows: int) -> None:
    cached, whole = two_sides("infonce", dropout=0.5), two_sides("infonce", dropout=0.5)
    torch.manual_seed(5)
    run(encoder(cached), num_rows=10, chunk_rows=chunk_rows)
    after = torch.rand(1)
    torch.manual_seed(5)
    encode = encoder(whole)
    chunks = [encode(slice(first, min(10, first + chunk_rows))) for first in range(0, 10, chunk_rows)]
    assert torch.equal(torch.rand(1), after)  # what comes later does not notice the second pass
    output = PairEmbeddings(
        torch.cat([chunk.speech for chunk in chunks]), torch.cat([chunk.text for chunk in chunks]), chunks[0].log_scale
    )
    contrastive_loss(output, text_keys=KEYS, num_targets=10, group=None).loss_sum.backward()
    assert largest_difference(gradients(cached), gradients(whole)) < 1e-12


class Deep(nn.Module):
    """Eight layers of width 32: activations of 8 x 32 numbers a row, beside which embeddings are small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(8)))
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> PairEmbeddings:
        speech = nn.functional.normalize(self.layers(x)[:, :4], dim=1)
        return PairEmbeddings(speech, speech.detach().roll(1, 1), self.log_scale.clone())


class LiveBytes:
    """Bytes that autograd keeps for backward, now and at most, weights left out."""

    def __init__(self, model: nn.Module) -> None:
        self.now = self.most = 0
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(self, tensor: Tensor) -> object:
        return _Kept(self, tensor, counts=tensor.untyped_storage().data_ptr() not in self._weights)


class _Kept:
    def __init__(self, live: LiveBytes, tensor: Tensor, *, counts: bool) -> None:
        self.live, self.tensor, self.num_bytes = live, tensor, tensor.numel() * tensor.element_size() * counts
        live.now += self.num_bytes
        live.most = max(live.most, live.now)

    def __del__(self) -> None:
        self.live.now -= self.num_bytes


def activation_bytes(num_rows: int, chunk_rows: int) -> int:
    """The most that encoding keeps at any time of a loss and its backward."""
    model, x = Deep(), torch.randn(num_rows, 32)
    live = LiveBytes(model)

    def encode(rows: slice) -> PairEmbeddings:
        with torch.autograd.graph.saved_tensors_hooks(live.kept, lambda kept: kept.tensor):
            return model(x[rows])

    run(encode, num_rows=num_rows, chunk_rows=chunk_rows)
    assert live.now == 0
    return live.most


def test_4096_pairs_need_the_activations_of_one_chunk() -> None:
    small, large, whole = activation_bytes(64, 64), activation_bytes(4096, 64), activation_bytes(4096, 4096)
    assert large == small > 8 * 32 * 64 * 4
    assert whole > 60 * large
