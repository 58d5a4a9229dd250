"""The CTC model hands on exact lengths, starts with the biases it was told, and streams what it computes at once."""

import pytest
import torch

from core.losses.ctc import ctc_loss, intermediate_ctc_loss
from core.models.ctc import CTCHeadConfig, CTCModel
from core.models.lmu.encoder import LMUEncoder, LMUEncoderConfig
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics


def tiny_model(*, causal: bool = False, head: CTCHeadConfig | None = None, num_blocks: int = 1) -> CTCModel:
    torch.manual_seed(0)
    encoder = LMUEncoderConfig(
        input_dim=6, dim=8, num_blocks=num_blocks, subsampling_channels=4, memory_channels=2, order=4, theta=8.0,
        ffn_dim=16, conv_kernel=3, dropout=0.0, causal=causal, bidirectional=not causal,
    )  # fmt: skip
    return CTCModel(LMUEncoder(encoder), vocab_size=5, config=head or CTCHeadConfig())


def test_lengths_are_those_after_subsampling_and_ctc_accepts_them() -> None:
    """C-7 of the seed system: half as many frames as the loss was told."""
    model = tiny_model()
    num_frames = torch.tensor([40, 23, 9])
    logits, lengths, _ = model(torch.randn(3, 40, 6), num_frames)
    assert logits.shape == (3, 10, 5)
    assert lengths.tolist() == [10, 6, 3] == [model.output_lengths(n) for n in num_frames.tolist()]
    output = ctc_loss(logits, lengths, torch.tensor([[1, 2, 3], [1, 1, 0], [4, 0, 0]]), torch.tensor([3, 2, 1]))
    assert int(output.metrics["infeasible"][0]) == 0
    output.loss_sum.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []


def test_the_bias_sets_the_first_probabilities() -> None:
    model = tiny_model(head=CTCHeadConfig(init_gain=1e-4, blank_bias=0.1, symbol_bias=0.2))
    log_probs, _ = model.log_probs(torch.randn(1, 16, 6), torch.tensor([16]))
    symbol, blank = 0.2, 0.1
    expected = torch.tensor([blank, symbol, symbol, symbol, symbol]).log_softmax(0)
    assert (log_probs - expected).abs().max() < 1e-2
    assert model.projection.bias.tolist() == pytest.approx([0.1, 0.2, 0.2, 0.2, 0.2])
    with pytest.raises(ValueError, match="init_gain"):
        CTCHeadConfig(init_gain=0.0)


def test_padding_changes_nothing() -> None:
    model = tiny_model().eval()
    features = torch.randn(1, 21, 6)
    alone, _ = model.log_probs(features, torch.tensor([21]))
    padded = torch.cat([features, torch.full((1, 19, 6), 30.0)], dim=1)
    beside, lengths = model.log_probs(torch.cat([padded, torch.randn(1, 40, 6)]), torch.tensor([21, 40]))
    assert lengths.tolist() == [6, 10]
    assert_close(beside[0, :6], alone[0], rel=1e-6)


def test_streaming_equals_one_pass() -> None:
    model = tiny_model(causal=True).eval()
    features = torch.randn(1, 32, 6)
    whole, _ = model.log_probs(features, torch.tensor([32]))
    state, parts = None, []
    for chunk in features.split([5, 1, 14, 12], dim=1):
        part, state = model.stream(chunk, state)
        parts.append(part)
    assert_close(torch.cat(parts, dim=1), whole, rel=5e-6)


def test_blocks_are_the_encoder_s() -> None:
    model = tiny_model()
    assert model.blocks() == list(model.encoder.layers)


def test_intermediate_logits_are_read_off_the_hidden_frames_between_the_blocks() -> None:
    model = tiny_model(head=CTCHeadConfig(intermediate_blocks=[1]), num_blocks=2)
    features, num_frames = torch.randn(2, 24, 6), torch.tensor([24, 13])
    logits, _, intermediate = model(features, num_frames)
    seen = []
    handle = model.encoder.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    again, _, _ = model(features, num_frames)
    handle.remove()
    assert torch.equal(intermediate[0], model.intermediate[0](seen[0]))
    assert torch.equal(again, logits)
    model.eval()
    assert torch.equal(model(features, num_frames).logits, logits)
    assert model(features, num_frames).intermediate == []


def test_the_intermediate_loss_is_a_mean_of_the_two() -> None:
    torch.manual_seed(0)
    logits, first, second = (torch.randn(2, 6, 5, requires_grad=True) for _ in range(3))
    lengths, targets, target_lengths = torch.tensor([6, 4]), torch.tensor([[1, 2, 3], [2, 2, 2]]), torch.tensor([3, 3])

    def ctc(values: torch.Tensor) -> torch.Tensor:
        log_probs = values.log_softmax(-1)[:1].transpose(0, 1)  # the second cannot be aligned: 5 frames are needed
        return torch.nn.functional.ctc_loss(log_probs, targets[:1], lengths[:1], target_lengths[:1], reduction="sum")

    output = intermediate_ctc_loss(logits, [first, second], lengths, targets, target_lengths, weight=0.25)
    expected = 0.75 * ctc(logits) + 0.25 * (ctc(first) + ctc(second)) / 2
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    numerator, denominator = output.metrics["final_loss"]
    assert float(numerator) == pytest.approx(ctc(logits).item(), rel=1e-6)
    assert int(denominator) == 3
    alone = intermediate_ctc_loss(logits, [], lengths, targets, target_lengths, weight=0.25)
    assert alone.loss_sum.item() == pytest.approx(ctc(logits).item(), rel=1e-6)
