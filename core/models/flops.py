"""FLOPs of our model families: the formulas of core.flops put together as the models put their layers together.

of_frames = functools.cache(lambda num_frames: ctc_training(config.model, num_frames, vocab_size=len(vocabulary)))
useful, padded = batch_flops(of_frames, num_frames=[712, 655, 490], padded_frames=712)
"""

from collections.abc import Callable, Sequence

from core import flops
from core.models.lmu import memory as lmu_memory
from core.models.lmu.attention_encoder import AttentionLMUEncoderConfig
from core.models.lmu.encoder import LMUEncoderConfig

EncoderConfig = LMUEncoderConfig | AttentionLMUEncoderConfig


def batch_flops(
    of_frames: Callable[[int], float], *, num_frames: Sequence[int], padded_frames: int
) -> tuple[float, float]:
    """Return (useful, padded) operations of a batch: its sequences at their own lengths, and all at the longest."""
    return sum(of_frames(length) for length in num_frames), len(num_frames) * of_frames(padded_frames)


def ctc_training(config: EncoderConfig, num_frames: int, *, vocab_size: int, num_heads: int = 1) -> float:
    """Count forward and backward of `num_frames` feature frames through encoder and output layers."""
    dim = config.dim if isinstance(config, LMUEncoderConfig) else config.output_dim
    head = flops.linear(num_rows=config.output_lengths(num_frames), input_dim=dim, output_dim=vocab_size)
    first = first_layer_forward(config, num_frames)
    return flops.training(encoder_forward(config, num_frames) + num_heads * head, without_input_gradient=first)


def encoder_forward(config: EncoderConfig, num_frames: int) -> float:
    """Count the forward of a sequence of `num_frames` feature frames through the encoder."""
    if isinstance(config, LMUEncoderConfig):
        return _lmu_encoder(config, num_frames)
    return _attention_lmu_encoder(config, num_frames)


def first_layer_forward(config: EncoderConfig, num_frames: int) -> float:
    """Count the layer that reads the features: nobody asks for the gradient of its input."""
    if isinstance(config, AttentionLMUEncoderConfig):
        return flops.linear(num_rows=num_frames, input_dim=config.input_dim, output_dim=config.dim)
    half, bins = -(-num_frames // 2), -(-config.input_dim // 2)
    if config.subsampling == "conv1d":
        channels, kernel = config.subsampling_channels, 5
        return flops.conv(num_outputs=half, in_channels=config.input_dim, out_channels=channels, kernel=kernel)
    return flops.conv(num_outputs=half * bins, in_channels=1, out_channels=config.subsampling_channels, kernel=9)


def _lmu_encoder(config: LMUEncoderConfig, num_frames: int) -> float:
    num_frames_out, dim = config.output_lengths(num_frames), config.dim

    def linear(input_dim: int, output_dim: int) -> float:
        return flops.linear(num_rows=num_frames_out, input_dim=input_dim, output_dim=output_dim)

    channels = config.subsampling_channels
    if config.subsampling == "conv1d":
        second = flops.conv(num_outputs=num_frames_out, in_channels=channels, out_channels=dim, kernel=5)
        projected = dim
    else:
        bins = -(-config.input_dim // 4)
        second = flops.conv(num_outputs=num_frames_out * bins, in_channels=channels, out_channels=channels, kernel=9)
        projected = channels * bins
    memory = _parallel_memory(
        num_frames_out,
        order=config.order,
        channels=config.memory_channels,
        num_directions=1 + config.bidirectional,
        form=config.lmu_form,
    )
    lmu = linear(dim, config.memory_channels) + memory + linear(config.order * config.memory_channels, dim)
    lmu += 2 * linear(dim, dim)  # from_input, lmu_output
    block = lmu + linear(dim, config.ffn_dim) + linear(config.ffn_dim, dim)
    if config.num_heads:
        block += 4 * linear(dim, dim)
        block += flops.attention(
            num_frames=num_frames_out, dim=dim, causal=config.causal, left_context=config.left_context
        )
    if config.conv_kernel:
        block += linear(dim, 2 * dim) + linear(dim, dim)
        block += flops.conv(
            num_outputs=num_frames_out, in_channels=dim, out_channels=dim, kernel=config.conv_kernel, groups=dim
        )
    return first_layer_forward(config, num_frames) + second + linear(projected, dim) + config.num_blocks * block


def _attention_lmu_encoder(config: AttentionLMUEncoderConfig, num_frames: int) -> float:
    total, dim = first_layer_forward(config, num_frames), config.dim
    for i in range(config.num_layers):
        total += 4 * flops.linear(num_rows=num_frames, input_dim=dim, output_dim=dim)
        total += flops.attention(num_frames=num_frames, dim=dim, causal=config.causal, left_context=config.left_context)
        total += _attention_lmu_memory(config, num_frames)
        if i % 2 and config.downsampling > 1:
            num_frames //= config.downsampling
            total += flops.conv(num_outputs=num_frames, in_channels=dim, out_channels=dim, kernel=config.downsampling)
    return total + flops.linear(num_rows=num_frames, input_dim=dim, output_dim=config.output_dim)


def _attention_lmu_memory(config: AttentionLMUEncoderConfig, num_frames: int) -> float:
    dim, order, channels = config.dim, config.order, config.memory_channels
    if config.lmu == "exact":
        return flops.lmu_exact(num_frames=num_frames, input_dim=dim, hidden_dim=dim, order=order, channels=channels)
    read_write = flops.linear(num_rows=num_frames, input_dim=dim + order * channels, output_dim=dim)
    read_write += flops.linear(num_rows=num_frames, input_dim=dim, output_dim=channels)
    return read_write + _parallel_memory(
        num_frames, order=order, channels=channels, num_directions=1, form=config.lmu_form
    )


def _parallel_memory(
    num_frames: int, *, order: int, channels: int, num_directions: int, form: lmu_memory.Form
) -> float:
    """Count the memory of all directions, in the form that runs."""
    if num_frames < 1:
        return 0.0
    each = channels // num_directions
    if form == "auto":
        form = lmu_memory.cheapest_form(num_frames, batch=1, order=order, channels=each, device_type="cpu")
    if form == "chunked":
        chunk = lmu_memory.chunk_size(num_frames, order=order)
        once = flops.lmu_chunked(num_frames=num_frames, order=order, channels=each, chunk=chunk)
    elif form == "fft":
        size = lmu_memory.fft_size(2 * num_frames - 1)
        once = flops.lmu_fft(num_frames=num_frames, order=order, channels=each, size=size)
    else:
        once = flops.lmu_recurrent(num_frames=num_frames, order=order, channels=each)
    return num_directions * once
