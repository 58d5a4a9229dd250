"""FLOPs of the encoders against torch's counter of their forward passes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.models.ctc import CTCHeadConfig, CTCModel
from core.models.flops import EncoderConfig, batch_flops, ctc_training, encoder_forward, first_layer_forward
from core.models.lmu.attention_encoder import AttentionLMUEncoder, AttentionLMUEncoderConfig
from core.models.lmu.encoder import LMUEncoder, LMUEncoderConfig

SMALL = {"input_dim": 40, "dim": 64, "num_heads": 4}
CONFIGS = [
    LMUEncoderConfig(**SMALL, num_blocks=2, ffn_dim=96),
    LMUEncoderConfig(**SMALL, num_blocks=1, subsampling="conv2d", subsampling_channels=16),
    LMUEncoderConfig(input_dim=40, dim=64, num_blocks=1, bidirectional=False, causal=True, conv_kernel=8),
    LMUEncoderConfig(input_dim=40, dim=64, num_blocks=1, conv_kernel=0, lmu_form="chunked"),
    AttentionLMUEncoderConfig(**SMALL, output_dim=48, order=24, memory_channels=16),
    AttentionLMUEncoderConfig(**SMALL, output_dim=48, order=8, memory_channels=16, downsampling=1, num_layers=2),
]


def counted(config: EncoderConfig, num_frames: int) -> int:
    encoder = LMUEncoder(config) if isinstance(config, LMUEncoderConfig) else AttentionLMUEncoder(config)
    model = CTCModel(encoder, vocab_size=30, config=CTCHeadConfig()).eval()
    arguments = torch.randn(1, num_frames, 40), torch.tensor([num_frames])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*arguments)  # the memory's constants are computed once
        with FlopCounterMode(display=False) as counter:
            model(*arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("num_frames", [97, 531])
def test_forward_equals_the_counter(config: EncoderConfig, num_frames: int) -> None:
    training = ctc_training(config, num_frames, vocab_size=30)
    forward = (training + first_layer_forward(config, num_frames)) / 3
    assert forward == pytest.approx(counted(config, num_frames), rel=0.015)


def test_every_output_layer_counts() -> None:
    config = CONFIGS[0]
    model = CTCModel(LMUEncoder(config), vocab_size=30, config=CTCHeadConfig(intermediate_blocks=[1]))  # type: ignore[arg-type]
    arguments, found = (torch.randn(1, 97, 40), torch.tensor([97])), []
    for training in (False, True):  # the intermediate layer is for training only
        model.train(training)(*arguments)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*arguments)
        found.append(counter.get_total_flops())
    one, two = (ctc_training(config, 97, vocab_size=30, num_heads=num) for num in (1, 2))
    assert two - one == 3 * (found[1] - found[0]) > 0


def test_a_batch_counts_useful_and_padded_frames() -> None:
    config = CONFIGS[0]
    useful, padded = batch_flops(lambda n: encoder_forward(config, n), num_frames=[100, 40], padded_frames=100)
    assert padded == 2 * encoder_forward(config, 100)
    assert useful == encoder_forward(config, 100) + encoder_forward(config, 40) < padded
