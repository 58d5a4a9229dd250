"""Both encoders: exact lengths, blind to padding, the same chunk by chunk, ready for ranks and for CTC."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from core.models.lmu.attention_encoder import AttentionLMUEncoder, AttentionLMUEncoderConfig
from core.models.lmu.encoder import LMUEncoder, LMUEncoderConfig
from tests.closeness import assert_close

pytestmark = pytest.mark.numerics

Encoder = LMUEncoder | AttentionLMUEncoder
FEATURES = 12
MODERN: dict[str, Any] = {
    "input_dim": FEATURES, "dim": 16, "num_blocks": 2, "subsampling_channels": 6, "memory_channels": 4, "order": 4,
    "theta": 10.0, "conv_kernel": 5, "ffn_dim": 24,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {"input_dim": FEATURES, "dim": 24, "output_dim": 10, "order": 8, "theta": 30.0}
CAUSAL: dict[str, Any] = {"causal": True, "bidirectional": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "attention": {"num_heads": 4},
    "conv2d": {"subsampling": "conv2d"},
    "without-conv": {"conv_kernel": 0, "trainable_theta": True, "memory_channels": 32},
    "causal": CAUSAL,
    "causal-attention": CAUSAL | {"num_heads": 2, "left_context": 5},
    "causal-conv2d": CAUSAL | {"num_heads": 2, "subsampling": "conv2d", "conv_kernel": 4},
    "published": {},
    "published-exact": {"lmu": "exact", "downsampling": 3},
    "published-causal": {"causal": True, "num_layers": 4},
    "published-exact-causal": {"lmu": "exact", "causal": True, "left_context": 7, "downsampling": 1},
}


def build(variant: str) -> Encoder:
    torch.manual_seed(0)
    if variant.startswith("published"):
        return AttentionLMUEncoder(AttentionLMUEncoderConfig(**PUBLISHED | VARIANTS[variant])).eval()
    return LMUEncoder(LMUEncoderConfig(**MODERN | VARIANTS[variant])).eval()


def features(batch: int, num_frames: int) -> Tensor:
    return torch.randn(batch, num_frames, FEATURES, generator=torch.Generator().manual_seed(num_frames))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_never_changes_a_valid_frame(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    encoder = build(variant).to(dtype)
    lengths = [61, 1, 2, 3, 4, 5, 29, 60, 0]
    x = features(len(lengths), 61).to(dtype)
    x[torch.arange(61) >= torch.tensor(lengths)[:, None]] = 1e3  # not silence: nothing may read it
    batch, batch_lengths = encoder(x, torch.tensor(lengths))
    assert batch_lengths.dtype == torch.int64
    assert batch.isfinite().all()
    for row, length in enumerate(lengths[:-1]):
        alone, alone_length = encoder(x[row : row + 1, :length], torch.tensor([length]))
        n = int(alone_length)
        assert n == batch_lengths[row]
        assert alone.size(1) == max(1, n)
        scale = max(1.0, alone.abs().max().item())
        assert n == 0 or (batch[row, :n] - alone[0, :n]).abs().max() <= tolerance * scale
    assert batch_lengths[-1] == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_lengths_are_exact_on_ints_arrays_and_tensors(variant: str) -> None:
    encoder = build(variant)
    lengths = np.arange(1, 70)
    expected = encoder.output_lengths(lengths)
    assert expected.tolist() == [encoder.config.output_lengths(int(n)) for n in lengths]
    assert torch.equal(encoder.output_lengths(torch.from_numpy(lengths)), torch.from_numpy(expected))
    hidden, returned = encoder(features(len(lengths), 69), torch.from_numpy(lengths))
    assert torch.equal(returned, torch.from_numpy(expected))
    assert hidden.size(1) == expected.max()
    assert hidden.size(2) == encoder.output_dim


def test_lengths_by_hand() -> None:
    assert [LMUEncoderConfig().output_lengths(n) for n in (1, 4, 5, 400, 401)] == [1, 1, 2, 100, 101]
    published = AttentionLMUEncoderConfig(downsampling=2, num_layers=5)  # twice by 2
    assert [published.output_lengths(n) for n in (1, 3, 4, 7, 400, 403)] == [0, 0, 1, 1, 100, 100]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "causal" in name])
def test_streaming_in_random_chunks_equals_the_whole(variant: str) -> None:
    encoder = build(variant)
    x = features(2, 203)
    whole, _ = encoder(x, torch.tensor([203, 203]))
    rng = np.random.default_rng(0)
    for longest in (1, 9, 80):
        state: Any = None
        parts, start = [], 0
        while start < 203:
            stop = start + int(rng.integers(longest > 1, longest + 1)) if longest > 1 else start + 1
            part, state = encoder.stream(x[:, start:stop], state)
            parts.append(part)
            start = stop
        streamed = torch.cat(parts, dim=1)
        assert streamed.shape == whole.shape
        assert_close(streamed, whole, rel=5e-6)


@pytest.mark.parametrize("variant", ["bidirectional", "published"])
def test_an_encoder_that_sees_the_future_refuses_to_stream(variant: str) -> None:
    with pytest.raises(ValueError, match="causal=false"):
        build(variant).stream(features(1, 20))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_and_blocks_hold_most_of_them(variant: str) -> None:
    encoder = build(variant).train()
    hidden, _ = encoder(features(2, 61), torch.tensor([61, 30]))
    (hidden * torch.randn_like(hidden)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    blocks = encoder.blocks()
    assert all(isinstance(block, nn.Module) for block in blocks)
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    assert inside >= 0.5 * sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("variant", ["bidirectional", "published", "published-exact"])
def test_checkpointed_blocks_give_the_same_gradients(variant: str) -> None:
    encoder = build(variant)
    checkpointed = copy.deepcopy(encoder)
    for block in checkpointed.blocks():
        block.forward = _recomputed(block.forward)
    gradients = []
    for model in (encoder, checkpointed):
        model(features(2, 61), torch.tensor([61, 30]))[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def _recomputed(forward: Any) -> Any:
    return lambda *inputs: torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False)


@pytest.mark.parametrize("variant", ["attention", "published"])
def test_compiled_blocks_give_the_same_and_serve_all_lengths(variant: str) -> None:
    encoder, counter = build(variant), CompileCounter()
    block = encoder.blocks()[-1]
    compiled = torch.compile(block, backend=counter)
    dim = encoder.config.dim
    for num_frames in (20, 21, 30, 33, 47, 90):
        x, is_valid = torch.randn(2, num_frames, dim), torch.arange(num_frames) < torch.tensor([[num_frames], [9]])
        assert_close(compiled(x, is_valid), block(x, is_valid), rel=5e-6)
        if num_frames == 21:  # now it is known that lengths vary
            num_graphs = counter.frame_count
    assert counter.frame_count == num_graphs


@pytest.mark.parametrize("variant", ["bidirectional", "published"])
def test_ctc_accepts_the_returned_lengths_and_refuses_unscaled_ones(variant: str) -> None:
    encoder = build(variant)
    num_frames = torch.tensor([61, 40])
    hidden, lengths = encoder(features(2, 61), num_frames)
    log_probs = hidden.log_softmax(-1).transpose(0, 1)  # (T', B, V)
    targets = torch.tensor([[1, 2], [3, 4]])
    assert F.ctc_loss(log_probs, targets, lengths, torch.tensor([2, 2])).isfinite()
    with pytest.raises(RuntimeError, match="input_lengths"):  # the predecessor's call
        F.ctc_loss(log_probs, targets, num_frames, torch.tensor([2, 2]))


@pytest.mark.parametrize("variant", ["bidirectional", "published"])
def test_ranks_with_other_lengths_share_all_state(variant: str) -> None:
    """Nothing grows in the state dict or the buffers, which DDP compares and broadcasts."""
    short, long = build(variant), build(variant)
    short(features(1, 20), torch.tensor([20]))
    long(features(1, 900), torch.tensor([900]))
    shapes = [
        {name: tuple(x.shape) for name, x in [*m.state_dict().items(), *m.named_buffers()]} for m in (short, long)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "schema, options, message",
    [
        (LMUEncoderConfig, {"causal": True}, "bidirectional=true"),
        (LMUEncoderConfig, {"memory_channels": 3}, "memory_channels=3 must be even"),
        (LMUEncoderConfig, {"num_heads": 3}, "num_heads=3 must divide dim=256"),
        (LMUEncoderConfig, {"left_context": 3}, "left_context=3"),
        (LMUEncoderConfig, {"conv_kernel": 4}, "conv_kernel=4 must be odd"),
        (AttentionLMUEncoderConfig, {"num_heads": 5}, "num_heads=5 must divide dim=384"),
        (AttentionLMUEncoderConfig, {"left_context": 3}, "left_context=3"),
        (AttentionLMUEncoderConfig, {"lmu": "exact", "lmu_form": "fft"}, "lmu_form=fft"),
        (AttentionLMUEncoderConfig, {"downsampling": 0}, "downsampling"),
    ],
)
def test_contradicting_options_are_refused(schema: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema(**options)
