"""HuBERT against torchaudio's model and Hugging Face's, under padding, and when layers are passed over."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torchaudio.models.wav2vec2 import components

from core.losses.masked_prediction import masked_prediction_loss
from core.models.hubert.config import HubertConfig, hubert_config
from core.models.hubert.flops import encoder_flops, front_end_flops, training_flops
from core.models.hubert.model import HubertPretraining
from core.models.hubert.names import export_state
from core.optim.optim import OptimConfig
from core.parallel.engine import build_engine
from core.parallel.settings import ParallelConfig
from core.seeding import seed_everything
from tests.closeness import assert_close
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.numerics

SMALL_CONVS = [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 2, 2], [16, 2, 2]]


def small_config(**values: Any) -> HubertConfig:
    sizes: dict[str, Any] = {
        "conv_layers": SMALL_CONVS, "dim": 32, "num_layers": 3, "num_heads": 4, "ffn_dim": 64, "position_kernel": 16,
        "position_groups": 4, "final_dim": 12, "num_classes": 7, "projection_dropout": 0.0, "attention_dropout": 0.0,
        "dropout": 0.0, "layer_drop": 0.0,
    }  # fmt: skip
    return HubertConfig(**{**sizes, **values})


LARGE_KIND = {"conv_norm": "layer", "pre_norm": True, "feature_grad_scale": 1.0}


def seeded(config: HubertConfig) -> HubertPretraining:
    seed_everything(0, "model")
    return HubertPretraining(config)


def rival_of(model: HubertPretraining) -> nn.Module:
    """torchaudio's model of the same architecture and weights."""
    config = model.config
    rival = torchaudio.models.hubert_pretrain_model(
        extractor_mode=f"{config.conv_norm}_norm",
        extractor_conv_layer_config=[tuple(layer) for layer in config.conv_layers],
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.dim,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.position_kernel,
        encoder_pos_conv_groups=config.position_groups,
        encoder_num_layers=config.num_layers,
        encoder_num_heads=config.num_heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=config.ffn_dim,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=config.pre_norm,
        encoder_layer_drop=0.0,
        mask_prob=0.8, mask_selection="static", mask_other=0.0, mask_length=10, no_mask_overlap=False,
        mask_min_space=1, mask_channel_prob=0.0, mask_channel_selection="static", mask_channel_other=0.0,
        mask_channel_length=10, no_mask_channel_overlap=False, mask_channel_min_space=1,
        skip_masked=False, skip_nomask=False, num_classes=config.num_classes, final_dim=config.final_dim,
        feature_grad_mult=None if config.feature_grad_scale == 1 else config.feature_grad_scale,
    )  # fmt: skip
    rival.load_state_dict(export_state(model, "torchaudio"), strict=True)
    return rival


@contextmanager
def given_mask(is_masked: Tensor) -> Iterator[None]:
    original = components._compute_mask_indices
    components._compute_mask_indices = lambda *args, **kwargs: is_masked
    try:
        yield
    finally:
        components._compute_mask_indices = original


def examples(num_clips: int = 3, *, num_samples: int = 6800, classes: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Audio (B, S), labels (B, T), masked frames (B, K)."""
    random = torch.Generator().manual_seed(1)
    audio = 0.1 * torch.randn(num_clips, num_samples, generator=random)
    num_frames = (num_samples - 400) // 320 + 1
    labels = torch.randint(classes, (num_clips, num_frames), generator=random)
    masked = torch.rand(num_clips, num_frames, generator=random).argsort(1)[:, :9].sort(1).values
    return audio, labels, masked


def published_loss(logit_m: Tensor, penalty: Tensor) -> Tensor:
    """hubert_loss of the predecessor: the right class stands first, the other classes follow."""
    wanted = torch.zeros(len(logit_m), dtype=torch.long)
    return nn.functional.cross_entropy(logit_m, wanted, reduction="sum") + 10 * penalty * len(logit_m)


def loss_of(model: nn.Module, audio: Tensor, num_samples: Tensor, labels: Tensor, masked: Tensor) -> Tensor:
    output = model(audio, num_samples, masked_frames=masked)
    return masked_prediction_loss(output.logits, labels.gather(1, masked), output.penalties).loss_sum


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("kind", [{}, LARGE_KIND, {"conv_bias": True}], ids=["base", "large", "biased"])
def test_loss_and_gradients_are_those_of_torchaudio(kind: dict[str, Any]) -> None:
    model = seeded(small_config(**kind))
    rival = rival_of(model)
    audio, labels, masked = examples()
    is_masked = torch.zeros_like(labels, dtype=torch.bool).scatter_(1, masked, True)
    with given_mask(is_masked):
        logit_m, _, penalty = rival(audio, labels, torch.full((3,), audio.size(1)))
    theirs = published_loss(logit_m, penalty)
    ours = loss_of(model, audio, torch.full((3,), audio.size(1)), labels, masked)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    ours.backward()
    theirs.backward()
    gradients = {name.removeprefix("hubert."): p.grad for name, p in model.named_parameters()}
    names = dict(zip(export_state(model, "torchaudio"), gradients, strict=True))
    total = float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())
    for name, parameter in rival.named_parameters():
        difference = gradients[names[name]] - parameter.grad
        # keys' biases, and biases before a GroupNorm, have gradients of nothing but rounding
        assert float(difference.norm()) <= 1e-4 * float(parameter.grad.norm()) + 1e-6 * total, name


def test_features_and_layers_are_those_of_torchaudio() -> None:
    for kind in ({}, LARGE_KIND):
        model = seeded(small_config(**kind)).eval()
        rival = rival_of(model).eval()
        audio, _, _ = examples()
        lengths = torch.full((3,), audio.size(1))
        layers, _ = rival.wav2vec2.extract_features(audio, lengths)
        for layer, theirs in enumerate(layers, start=1):
            ours, counts = model.hubert.hidden(audio, lengths, layer=layer)
            assert relative(ours, theirs) <= 1e-5
            assert counts.tolist() == [theirs.size(1)] * 3


@pytest.mark.parametrize("kind", [{}, LARGE_KIND], ids=["base", "large"])
@pytest.mark.parametrize("padding", [0.0, 5.0, float("nan")])
def test_padding_changes_neither_loss_nor_gradients(kind: dict[str, Any], padding: float) -> None:
    model = seeded(small_config(**kind)).double()
    lengths = [6800, 4567, 3600]
    audio, labels, _ = examples()
    audio = audio.double()
    masked = torch.tensor([[1, 2, 3, 4], [0, 5, 6, 12], [3, 7, 8, 9]])
    alone = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = alone + loss_of(model, audio[one, :length], torch.tensor([length]), labels[one], masked[one])
    alone.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    batch = torch.full((3, 9999), padding, dtype=torch.float64)
    for row, length in enumerate(lengths):
        batch[row, :length] = audio[row, :length]
    labels = nn.functional.pad(labels, (0, 9))
    together = loss_of(model, batch, torch.tensor(lengths), labels, masked)
    assert_close(together, alone, rel=1e-10)
    together.backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], rel=1e-10, of=torch.cat([g.flatten() for g in expected.values()]))


@pytest.mark.parametrize("kind", [{}, LARGE_KIND])
def test_compiled_layers_share_whole_graphs_for_all_shapes(kind: dict[str, Any]) -> None:
    """One for the first shape and one for all others, of a whole layer, whichever layer; one for layers dropped."""
    torch._dynamo.reset()
    model, counter = seeded(small_config(dropout=0.1, attention_dropout=0.1, **kind)).train(), CompileCounter()
    for block in model.blocks():
        block.compile(backend=counter, fullgraph=True)
    for num_rows, num_frames, dropped in [
        (4, 20, []),
        (3, 30, [1]),
        (2, 40, []),
        (6, 10, [0, 2]),
        (4, 20, []),
        (5, 15, []),
    ]:
        num_samples = torch.full((num_rows,), (num_frames - 1) * 320 + 400)
        audio, masked = torch.randn(num_rows, int(num_samples[0])), torch.arange(5).expand(num_rows, 5)
        model(audio, num_samples, masked_frames=masked, dropped_layers=dropped).logits.sum().backward()
    assert counter.frame_count <= 3


def test_hidden_frames_do_not_depend_on_the_batch_and_have_no_dropout() -> None:
    model = seeded(small_config(dropout=0.5, attention_dropout=0.5, projection_dropout=0.5)).train().double()
    audio = examples()[0].double()
    first, counts = model.hubert.hidden(audio, torch.tensor([6800, 5000, 2000]), layer=2)
    again, _ = model.hubert.hidden(audio, torch.tensor([6800, 5000, 2000]), layer=2)
    assert torch.equal(first, again) and model.training
    for row, length in enumerate([6800, 5000, 2000]):
        alone, _ = model.hubert.hidden(audio[row : row + 1, :length], torch.tensor([length]), layer=2)
        assert_close(first[row, : counts[row]], alone[0], rel=1e-10)
    with pytest.raises(ValueError, match="layer=4 must be between 1 and 3"):
        model.hubert.hidden(audio, torch.tensor([6800] * 3), layer=4)


def test_a_clip_shorter_than_a_frame_has_no_frames_and_no_nan() -> None:
    model = seeded(small_config())
    audio, _, _ = examples(2)
    output = model(audio[:, :300], torch.tensor([300, 0]), masked_frames=torch.zeros(2, 0, dtype=torch.long))
    assert output.logits.shape == (2, 0, 7) and output.penalties.tolist() == [0.0, 0.0]
    loss = masked_prediction_loss(output.logits, torch.zeros(2, 0, dtype=torch.long), output.penalties).loss_sum
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "num_classes", "expected"),
    [("base", 100, 94_594_176), ("base", 500, 94_696_576), ("large", 500, 316_606_336), ("xlarge", 500, 964_317_568)],
)
def test_the_published_sizes(monkeypatch: pytest.MonkeyPatch, size: Any, num_classes: int, expected: int) -> None:
    monkeypatch.setattr(components, "_init_transformer_params", lambda module: None)  # not possible on meta
    with torch.device("meta"):
        model = HubertPretraining(hubert_config(size, num_classes=num_classes))
        build = getattr(torchaudio.models, f"hubert_pretrain_{size}")
        rival = build(num_classes=num_classes) if size == "base" else build()
    assert sum(p.numel() for p in model.parameters()) == expected
    own = {name: tensor.shape for name, tensor in export_state(model, "torchaudio").items()}
    assert own == {name: tensor.shape for name, tensor in rival.state_dict().items()}
    assert (model.config.hop_samples, model.config.window_samples) == (320, 400)


def test_frames_of_samples() -> None:
    config = HubertConfig()
    samples = torch.tensor([0, 399, 400, 719, 720, 250_000])
    assert config.output_lengths(samples).tolist() == [0, 0, 1, 1, 2, 781]
    assert [config.output_lengths(n) for n in samples.tolist()] == [0, 0, 1, 1, 2, 781]


def test_dropped_layers_are_passed_over_and_get_zero_gradients() -> None:
    model = seeded(small_config())
    audio, labels, masked = examples()
    lengths = torch.full((3,), audio.size(1))
    output = model(audio, lengths, masked_frames=masked, dropped_layers=(1,))
    shorter = seeded(small_config())
    del shorter.hubert.encoder.layers[1]
    expected = shorter(audio, lengths, masked_frames=masked)
    assert torch.equal(output.logits, expected.logits)
    masked_prediction_loss(output.logits, labels.gather(1, masked), output.penalties).loss_sum.backward()
    for parameter in model.hubert.encoder.layers[1].parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert all(p.grad.any() for p in model.hubert.encoder.layers[0].attention.q_proj.parameters())


CLIPS = [(9, 6800), (4, 5000), (1, 6800), (7, 4000)]  # masked frames and samples of each micro-batch of a step


def _trained_on_ranks(ranks: Any, strategy: str) -> tuple[list[float], list[dict[str, Tensor]]]:
    """A few clipped updates of four clips with different numbers of masked frames, in each other layers passed over:
    losses and norms, and all gradients of each update before it is clipped."""
    config = ParallelConfig(strategy="ddp" if ranks.world_size == 1 else strategy)
    engine = build_engine(seeded(small_config()), config, optim=OptimConfig(name="sgd", lr=0.05), ranks=ranks)
    audio, labels, masked = examples(4)
    masked = masked[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))].clamp(max=10)
    num_targets = sum(count for count, _ in CLIPS)
    found, gradients = [], []
    for dropped in [(0,), (), (1, 2), (0, 1, 2)]:
        own = list(range(4))[ranks.dp_rank :: ranks.dp_size]
        total = 0.0
        for row in own:
            count, num_samples = CLIPS[row]
            frames = masked[row : row + 1, :count]
            with engine.accumulate(last=row == own[-1]):
                lengths = torch.tensor([num_samples])
                output = engine.model(audio[row : row + 1], lengths, masked_frames=frames, dropped_layers=dropped)
                targets = labels[row : row + 1].gather(1, frames)
                loss = masked_prediction_loss(output.logits, targets, output.penalties).loss_sum
                engine.backward(loss * ranks.dp_size / num_targets)
            total += loss.item()
        named = engine.model.named_parameters()
        gradients.append({name.removeprefix("module."): _whole(parameter) for name, parameter in named})
        norm = engine.step(max_norm=1.0, lr=0.05)
        found += [ranks.total([total])[0] / num_targets, float(norm)]
    return found, gradients


def _whole(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return (parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad).clone()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_of_two_micro_batches_are_one_of_four_with_layers_dropped(strategy: str) -> None:
    ((expected, expected_gradients),) = run_on_ranks(_trained_on_ranks, 1, strategy)
    for found, found_gradients in run_on_ranks(_trained_on_ranks, 2, strategy):
        assert found == pytest.approx(expected, rel=2e-6)
        for update, (ours, whole) in enumerate(zip(found_gradients, expected_gradients, strict=True)):
            norm = torch.cat([gradient.flatten() for gradient in whole.values()]).norm()
            assert ours.keys() == whole.keys()
            for name, gradient in whole.items():
                assert (ours[name] - gradient).norm() <= 1e-6 * norm, (update, name)
    assert expected[-2] < expected[0]


def test_the_gradient_of_the_convolutions_is_scaled() -> None:
    gradients = []
    for scale in (1.0, 0.1):
        model = seeded(small_config(feature_grad_scale=scale))
        audio, labels, masked = examples()
        loss_of(model, audio, torch.full((3,), audio.size(1)), labels, masked).backward()
        gradients.append((model.hubert.feature_extractor.conv_layers[3].conv.weight.grad, model.head.projection))
    torch.testing.assert_close(gradients[1][0], 0.1 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1].weight.grad, gradients[0][1].weight.grad)


def test_bf16_is_close_to_fp32_and_its_islands_are_fp32() -> None:
    model = seeded(small_config(position_groups=2)).eval()  # oneDNN computes 4 groups of 8 channels wrongly with AMX
    audio, _, masked = examples()
    lengths = torch.full((3,), audio.size(1))
    expected = model(audio, lengths, masked_frames=masked)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(audio, lengths, masked_frames=masked)
    assert found.logits.dtype == found.penalties.dtype == torch.float32
    torch.testing.assert_close(found.penalties, expected.penalties, rtol=0.02, atol=0)
    assert_close(found.logits, expected.logits, rel=0.05)


def test_a_step_of_base_costs_what_the_formulas_say() -> None:
    config, num_frames, seconds = HubertConfig(), 779, 15.6
    assert training_flops(config, num_frames=num_frames) / seconds == pytest.approx(46.0e9, rel=2e-3)
    assert sum(front_end_flops(config, num_frames=num_frames)) / seconds == pytest.approx(4.91e9, rel=2e-3)
    layers = encoder_flops(config, num_frames=num_frames, num_layers=12) - encoder_flops(
        config, num_frames=num_frames, num_layers=0
    )
    assert layers / seconds == pytest.approx(8.48e9 + 12 * 4 * num_frames**2 * 768 / seconds, rel=5e-3)
