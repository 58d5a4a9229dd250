"""Resampling: the same sound at another rate, or, by a rate that is not the true one, at another speed."""

import math
from functools import lru_cache

import numpy as np
import torch

_ZERO_CROSSINGS, _CUTOFF, _KAISER_BETA = 32, 0.94, 7.0  # of the filter
_OUTPUTS_A_BLOCK = 32  # at least
_LARGEST_PERIOD = 2**19  # 2 MiB of weights; 11025 Hz to 16 kHz has 640 x 441


def resample(samples: np.ndarray, *, from_hz: int, to_hz: int) -> np.ndarray:
    """Convert samples (S,) to another rate: ceil(S * to_hz / from_hz) float32 samples, in phase with the input.

    A Kaiser-windowed sinc, 32 zero crossings to either side: flat up to 0.87 of the lower Nyquist frequency, 70 dB
    down from 1.01 of it. The outputs of one block are one product with a matrix, ten times as fast as a polyphase
    loop; torch computes it because torch keeps to one thread in a loader's worker, and numpy does not.
    """
    common = math.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    samples = np.asarray(samples, dtype=np.float32)
    if up == down or samples.size == 0:
        return samples
    if up * down > _LARGEST_PERIOD:
        return _resample_directly(samples, up=up, down=down)
    num_outputs = -(-len(samples) * up // down)
    matrix, step, reach = _block_filter(up, down)  # (W, P): W inputs give P outputs
    width, outputs_a_block = matrix.shape
    num_blocks = -(-num_outputs // outputs_a_block)
    padded = torch.zeros((num_blocks - 1) * step + width)
    inputs = samples[: len(padded) - reach]
    padded.numpy()[reach : reach + len(inputs)] = inputs
    blocks = padded.unfold(0, width, step) @ matrix  # (blocks, P)
    return blocks.flatten()[:num_outputs].numpy()


@lru_cache(maxsize=32)
def _block_filter(up: int, down: int) -> tuple[torch.Tensor, int, int]:
    """Return the matrix from a block's inputs to its outputs, the step between blocks, and its first output."""
    periods = -(-_OUTPUTS_A_BLOCK // up)
    reach = math.ceil(_ZERO_CROSSINGS * max(1.0, down / up))
    outputs = np.arange(periods * up) * down  # times in 1 / up input samples, from the block's first output
    inputs = np.arange(-reach, periods * down + reach) * up
    weights = _low_pass((outputs[None, :] - inputs[:, None]) / max(up, down))  # (W, P)
    return torch.from_numpy((weights / weights.sum(axis=0)).astype(np.float32)), periods * down, reach


def _resample_directly(samples: np.ndarray, *, up: int, down: int) -> np.ndarray:
    """Compute the same sum with weights for each output: slow, for rates with so long a common period."""
    reach = math.ceil(_ZERO_CROSSINGS * max(1.0, down / up))
    padded = np.pad(samples, (reach, reach + 1))
    output = np.empty(-(-len(samples) * up // down), np.float32)
    taps = np.arange(-reach, reach + 2)
    for start in range(0, len(output), 4096):
        place = np.arange(start, min(start + 4096, len(output))) * down  # in 1 / up input samples
        before, after = np.divmod(place[:, None], up)  # the input sample before each output, and how far after it
        weights = _low_pass((after - taps * up) / max(up, down))  # (outputs, taps)
        values = padded[before + taps + reach]
        output[start : start + len(place)] = (values * weights).sum(axis=1) / weights.sum(axis=1)
    return output


def _low_pass(distance: np.ndarray) -> np.ndarray:
    """Return the filter's weight for an input so many samples (of the lower rate) away from the output."""
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / _ZERO_CROSSINGS) ** 2, 0, None)))
    return np.where(np.abs(distance) <= _ZERO_CROSSINGS, np.sinc(_CUTOFF * distance) * window, 0.0)
