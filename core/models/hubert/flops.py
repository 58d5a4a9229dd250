"""FLOPs of HuBERT by core.flops' formulas: what a second of speech costs, and MFU.

useful_s = training_flops(config, num_frames=779) / 15.6        # base: 46.0 GFLOP a second of audio
"""

from core import flops
from core.models.hubert.config import HubertConfig, HubertEncoderConfig

_MASKED_SHARE = 0.53


def training_flops(config: HubertConfig, *, num_frames: int) -> float:
    """Count the training on a clip of so many frames: 3 x forward, less the waveform's input gradient."""
    if num_frames < 1:
        return 0.0
    head_rows = _MASKED_SHARE * num_frames
    head = flops.linear(num_rows=head_rows, input_dim=config.dim, output_dim=config.final_dim)
    head += flops.linear(num_rows=head_rows, input_dim=config.final_dim, output_dim=config.num_classes)
    convs = front_end_flops(config, num_frames=num_frames)
    forward = sum(convs) + encoder_flops(config, num_frames=num_frames, num_layers=config.num_layers) + head
    return flops.training(forward, without_input_gradient=convs[0])


def finetuning_flops(
    config: HubertEncoderConfig, *, num_frames: int, vocab_size: int, trains_convs: bool, trains_encoder: bool
) -> float:
    """Count like `training_flops`, with a CTC layer over all frames; of what is frozen the forward only."""
    if num_frames < 1:
        return 0.0
    convs = front_end_flops(config, num_frames=num_frames)
    encoder = encoder_flops(config, num_frames=num_frames, num_layers=config.num_layers)
    head = flops.linear(num_rows=num_frames, input_dim=config.dim, output_dim=vocab_size)
    total = flops.training(head, without_input_gradient=0.0 if trains_encoder else head)
    if not trains_encoder:
        return total + encoder + sum(convs)
    if trains_convs:
        return total + flops.training(encoder + sum(convs), without_input_gradient=convs[0])
    projection = flops.linear(num_rows=num_frames, input_dim=config.conv_layers[-1][0], output_dim=config.dim)
    return total + flops.training(encoder, without_input_gradient=projection) + sum(convs)


def front_end_flops(config: HubertEncoderConfig, *, num_frames: int) -> list[float]:
    """Count the forward of each convolution over the samples that so many frames see."""
    num_samples = (num_frames - 1) * config.hop_samples + config.window_samples
    found, channels = [], 1
    for out_channels, kernel, stride in config.conv_layers:
        num_samples = (num_samples - kernel) // stride + 1
        found.append(
            flops.conv(num_outputs=num_samples, in_channels=channels, out_channels=out_channels, kernel=kernel)
        )
        channels = out_channels
    return found


def encoder_flops(config: HubertEncoderConfig, *, num_frames: int, num_layers: int) -> float:
    """Count the forward of projection, positions and so many layers."""
    dim = config.dim
    projection = flops.linear(num_rows=num_frames, input_dim=config.conv_layers[-1][0], output_dim=dim)
    positions = flops.conv(
        num_outputs=num_frames, in_channels=dim, out_channels=dim, kernel=config.position_kernel,
        groups=config.position_groups,
    )  # fmt: skip
    layer = flops.transformer_layer(num_frames=num_frames, dim=dim, ffn_dim=config.ffn_dim)
    return projection + positions + num_layers * layer
