"""The model to fine-tune against torchaudio's, put together as its fine-tuning step does; and what a step costs."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchaudio.models.wav2vec2 import components

from core.losses.ctc import ctc_loss
from core.models.hubert.config import HubertConfig
from core.models.hubert.flops import finetuning_flops
from core.models.hubert.model import HubertCTC
from tests.closeness import assert_close
from tests.core.models.hubert.test_model import LARGE_KIND, examples, rival_of, seeded, small_config

pytestmark = pytest.mark.numerics

KINDS = pytest.mark.parametrize("kind", [{}, LARGE_KIND], ids=["base", "large"])
TARGETS = torch.tensor([[1, 2, 2, 3], [4, 5, 0, 0], [3, 3, 1, 0]])
TARGET_LENGTHS = torch.tensor([4, 2, 3])


def finetuned(config: HubertConfig) -> tuple[HubertCTC, nn.Module, nn.Linear]:
    """Ours, and torchaudio's pretraining model and output layer with the same weights."""
    pretrained = seeded(config)
    model = HubertCTC(config, vocab_size=6)
    model.hubert.load_state_dict(pretrained.hubert.state_dict())
    aux = nn.Linear(config.dim, 6)
    aux.load_state_dict(model.head.state_dict())
    return model, rival_of(pretrained), aux


@contextmanager
def given_masks(is_masked: Tensor, is_masked_channel: Tensor) -> Iterator[None]:
    original, masks = components._compute_mask_indices, [is_masked, is_masked_channel]
    components._compute_mask_indices = lambda *arguments, **options: masks.pop(0)  # of frames, then of channels
    try:
        yield
    finally:
        components._compute_mask_indices = original


def their_step(rival: nn.Module, aux: nn.Linear, audio: Tensor, is_masked: Tensor, channels: Tensor) -> Tensor:
    """torchaudio/examples/hubert/lightning.py, HuBERTFineTuneModule._step of a thawed encoder: the summed loss."""
    num_samples = torch.full((len(audio),), audio.size(1))
    rival.mask_generator.mask_channel_prob = 0.5
    with torch.no_grad():
        x, lengths = rival.wav2vec2.feature_extractor(audio, num_samples)
    x, attention_mask = rival.wav2vec2.encoder._preprocess(x, lengths)
    with given_masks(is_masked, channels):
        x, _ = rival.mask_generator(x, None)
    x = rival.wav2vec2.encoder.transformer(x, attention_mask=attention_mask)
    log_probs = aux(x).log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, TARGETS, lengths, TARGET_LENGTHS, blank=0, reduction="sum", zero_infinity=True)


@KINDS
def test_loss_and_gradients_equal_torchaudios_step(kind: dict) -> None:
    model, rival, aux = finetuned(small_config(**kind))
    audio, _, _ = examples()
    num_frames = (audio.size(1) - 400) // 320 + 1
    random = torch.Generator().manual_seed(3)
    is_masked = torch.rand(3, num_frames, generator=random) < 0.4
    channels = torch.rand(3, 32, generator=random) < 0.3
    model.hubert.feature_extractor.requires_grad_(False)
    output = model(audio, torch.full((3,), audio.size(1)), is_masked=is_masked, is_masked_channel=channels)
    loss = ctc_loss(output.logits, output.lengths, TARGETS, TARGET_LENGTHS).loss_sum
    theirs = their_step(rival, aux, audio, is_masked, channels)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    loss.backward()
    theirs.backward()
    pairs = [
        (model.head.weight, aux.weight),
        (model.head.bias, aux.bias),
        (model.hubert.mask_embedding, rival.mask_generator.mask_embedding),
        (
            model.hubert.feature_projection.projection.weight,
            rival.wav2vec2.encoder.feature_projection.projection.weight,
        ),
        (
            model.hubert.encoder.layers[0].attention.q_proj.weight,
            rival.wav2vec2.encoder.transformer.layers[0].attention.q_proj.weight,
        ),
    ]
    for ours, other in pairs:
        assert ours.grad is not None and other.grad is not None
        assert (ours.grad - other.grad).norm() <= 1e-4 * other.grad.norm()
    assert all(parameter.grad is None for parameter in model.hubert.feature_extractor.parameters())


@KINDS
def test_a_clip_is_heard_alone_as_in_a_padded_batch(kind: dict) -> None:
    model = finetuned(small_config(**kind))[0].double()
    audio = examples()[0].double()
    num_samples = torch.tensor([6800, 4000, 5200])
    with torch.no_grad():
        logits, lengths, _ = model.eval()(audio, num_samples)
        for row, size in enumerate(num_samples.tolist()):
            alone = model(audio[row : row + 1, :size], num_samples[row : row + 1])
            assert alone.lengths.tolist() == [lengths[row]]
            assert_close(alone.logits[0], logits[row, : lengths[row]], rel=1e-10)


@pytest.mark.parametrize(("trains_convs", "trains_encoder"), [(False, False), (False, True), (True, True)])
def test_a_step_costs_what_the_formulas_say(trains_convs: bool, trains_encoder: bool) -> None:
    """torch counts neither norms nor, on a CPU, attention; as many frames here as leave attention a small part."""
    model = HubertCTC(small_config(ffn_dim=512, feature_grad_scale=1.0), vocab_size=6)
    model.hubert.requires_grad_(trains_encoder)
    model.hubert.feature_extractor.requires_grad_(trains_convs)
    audio = 0.1 * torch.randn(1, 8000)
    with FlopCounterMode(display=False) as counter:
        model(audio, torch.tensor([8000])).logits.sum().backward()
    formula = finetuning_flops(
        model.hubert.config, num_frames=24, vocab_size=6, trains_convs=trains_convs, trains_encoder=trains_encoder
    )
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.03)
