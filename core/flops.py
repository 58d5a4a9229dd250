"""Model FLOPs from formulas, and the peaks they are compared with.

A multiply-add is 2 operations. Norms, activations, biases and softmax are not counted, as is usual for MFU (Chowdhery
et al. 2022, arXiv:2204.02311). Every function gives a forward pass; `training` makes an update of it. Counters that
watch the backward are no help: torch's counts that of a grouped convolution `groups` times too high.
"""

import math
from collections.abc import Mapping

# Dense bf16 operations a second (fp16 for V100), from the data sheets.
DATASHEET: Mapping[str, float] = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
# What a large matrix product reaches, where it was measured.
MEASURED: Mapping[str, float] = {"H200": 790e12}


def linear(*, num_rows: float, input_dim: int, output_dim: int) -> float:
    """Return 2 N D_in D_out."""
    return 2.0 * num_rows * input_dim * output_dim


def conv(*, num_outputs: float, in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> float:
    """Return 2 L C_out (C_in / groups) k; `num_outputs` L: positions (frames x bins), `kernel`: taps in all."""
    return 2.0 * num_outputs * out_channels * (in_channels // groups) * kernel


def attention(*, num_frames: float, dim: int, causal: bool = False, left_context: int | None = None) -> float:
    """Count scores and weighted sums of a sequence over all heads, without projections: 4 D for each pair seen.

    T^2 pairs; causal: T (T + 1) / 2; with `left_context` at most so many before each frame.
    """
    pairs = num_frames**2
    if causal:
        beyond = max(0.0, num_frames - 1 - left_context) if left_context is not None else 0.0
        pairs = (num_frames * (num_frames + 1) - beyond * (beyond + 1)) / 2
    return 4.0 * pairs * dim


def transformer_layer(*, num_frames: float, dim: int, ffn_dim: int, causal: bool = False) -> float:
    """Count projections, feed-forward pair and attention of one sequence: 2 T (4 D^2 + 2 D F) + 4 T^2 D."""
    projections = 4 * linear(num_rows=num_frames, input_dim=dim, output_dim=dim)
    feed_forward = 2 * linear(num_rows=num_frames, input_dim=dim, output_dim=ffn_dim)
    return projections + feed_forward + attention(num_frames=num_frames, dim=dim, causal=causal)


def language_model(*, num_tokens: float, num_layers: int, dim: int, vocabulary: int, parameters: float) -> float:
    """Count a causal decoder over a sequence: 2 (N_non-embedding + D V) a token, and 2 T D a layer for attention.

    Three times that is the usual 6 N + 6 D V + 6 L T D a token of a training step.
    """
    per_token = 2.0 * parameters + 2.0 * dim * vocabulary + 2.0 * num_layers * num_tokens * dim
    return num_tokens * per_token


def lmu_recurrent(*, num_frames: float, order: int, channels: int) -> float:
    """Count m_t = A m_{t-1} + B u_t for each channel: 2 q^2 + 2 q a frame."""
    return 2.0 * num_frames * channels * (order**2 + order)


def lmu_chunked(*, num_frames: float, order: int, channels: int, chunk: int) -> float:
    """Count chunks of C frames: [powers of A | Toeplitz] [state | frames], 2 C q (q + C), hand-over 2 q (q + C)."""
    num_chunks = math.ceil(num_frames / chunk)
    if num_chunks == 1:
        return 2.0 * chunk * order * chunk * channels
    return 2.0 * num_chunks * (chunk + 1) * order * (order + chunk) * channels


def lmu_fft(*, num_frames: float, order: int, channels: int, size: int) -> float:
    """Count transforms of N points, 2.5 N log2 N each (q of the kernel, c in, q c back), q c products of spectra."""
    transforms = order + channels + order * channels
    return transforms * 2.5 * size * math.log2(size) + 6.0 * order * channels * (size // 2 + 1)


def lmu_exact(*, num_frames: float, input_dim: int, hidden_dim: int, order: int, channels: int) -> float:
    """Count the published cell with its GEMMs merged: the state s = [h, m] and the input, each to a new s."""
    state_dim = hidden_dim + order * channels
    return 2.0 * num_frames * state_dim * (state_dim + input_dim)


def training(forward: float, *, without_input_gradient: float = 0.0) -> float:
    """Count forward and backward: 3 x forward, less the input gradient of the first layer, which is its forward."""
    return 3.0 * forward - without_input_gradient


def peak(device_name: str, table: Mapping[str, float] = DATASHEET) -> float | None:
    """Return a device's peak by its own name (`NVIDIA H100 80GB HBM3`); None for a CPU and what the table lacks."""
    words = device_name.replace("-", " ").split()
    fitting = [known for known in table if set(known.split()) <= set(words)]
    return table[max(fitting, key=len)] if fitting else None
