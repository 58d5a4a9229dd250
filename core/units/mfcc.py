"""MFCC-39: 13 cepstra and their first and second differences, what HuBERT's first labels are clusters of.

Two conventions: `torchaudio` (128 mel bands in dB, at most 80 dB below the loudest of the utterance) as the predecessor
makes them, and `kaldi` (23 bands, pre-emphasis, liftering) as fairseq does. Plain torch, in batches, on any device.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.speech.features import FeatureConfig, LogMel

Convention = Literal["torchaudio", "kaldi"]

NUM_CEPSTRA = 13
HOP_SAMPLES, WINDOW_SAMPLES, SAMPLE_RATE_HZ = 160, 400, 16000
_TOP_DB = 80.0
_KALDI_FFT, _KALDI_MELS, _KALDI_LOW_HZ = 512, 23, 20.0
_PREEMPHASIS, _LIFTER = 0.97, 22.0


class Mfcc(nn.Module):
    """A module that computes features and frames: what follows an utterance in its row changes nothing.

    Frames of 25 ms every 10 ms that fit in the utterance, 1 + (S - 400) // 160, none of fewer than 400 samples. No
    parameters, no buffers, always in fp32.
    """

    def __init__(self, convention: Convention) -> None:
        super().__init__()
        self.convention = convention
        config = FeatureConfig(num_mels=128, center=False, scale="db", normalize="none")
        self._log_mel = LogMel(config)

    @torch.no_grad()
    def forward(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio (B, S), num_samples (B,) to features (B, T, 39), zero after the valid frames, and frames (B,)."""
        with torch.autocast(audio.device.type, enabled=False):
            if self.convention == "torchaudio":
                cepstra, counts = self._of_decibels(audio, num_samples)
            else:
                cepstra, counts = _kaldi_cepstra(audio, num_samples)
            first = differences(cepstra, counts)
            features = torch.cat([cepstra, first, differences(first, counts)], dim=-1)
            is_valid = torch.arange(features.size(1), device=audio.device) < counts[:, None]
            return features.masked_fill(~is_valid[..., None], 0.0), counts

    def _of_decibels(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        mel, counts = self._log_mel(audio, num_samples)  # (B, T, F)
        is_valid = torch.arange(mel.size(1), device=mel.device) < counts[:, None]
        loudest = mel.masked_fill(~is_valid[..., None], -math.inf).amax((1, 2), keepdim=True)
        mel = mel.maximum(loudest - _TOP_DB)
        return mel @ _cosines(mel.size(2)).to(mel.device), counts


def differences(x: Tensor, num_frames: Tensor) -> Tensor:
    """Return the slope of a line through 5 frames, sum_n n (x[t + n] - x[t - n]) / 10, n = 1, 2; ends are repeated.

    x (B, T, D), num_frames (B,) -> (B, T, D); behind the valid frames it holds no meaning.
    """
    times = torch.arange(x.size(1), device=x.device)
    last = (num_frames[:, None] - 1).clamp(min=0)
    slope = torch.zeros_like(x)
    for distance in (1, 2):
        after = torch.minimum(times + distance, last)[..., None].expand_as(x)
        before = (times - distance).clamp(min=0)[None, :, None].expand_as(x)
        slope += distance * (x.gather(1, after) - x.gather(1, before))
    return slope / 10


def _cosines(num_bands: int) -> Tensor:
    """Return the first 13 rows of the orthonormal DCT-II, transposed: (F, 13)."""
    bands = torch.arange(num_bands, dtype=torch.float64) + 0.5
    orders = torch.arange(NUM_CEPSTRA, dtype=torch.float64)
    matrix = math.sqrt(2 / num_bands) * torch.cos(math.pi / num_bands * bands[:, None] * orders)
    matrix[:, 0] = math.sqrt(1 / num_bands)
    return matrix.float()


def _kaldi_cepstra(audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
    """Compute compute-mfcc-feats without dither and energy, of samples as they are: (B, T, 13), counts (B,)."""
    counts = ((num_samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1) * (num_samples >= WINDOW_SAMPLES)
    audio = F.pad(audio.float(), (0, max(0, WINDOW_SAMPLES - audio.size(1))))
    frames = audio.unfold(-1, WINDOW_SAMPLES, HOP_SAMPLES)  # (B, T, W)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(WINDOW_SAMPLES, periodic=False, device=audio.device).pow(0.85)
    spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=_KALDI_FFT)
    power = spectrum.real.square() + spectrum.imag.square()
    mel = (power @ _kaldi_filters().to(audio.device)).clamp(min=torch.finfo(torch.float32).eps).log()
    orders = torch.arange(NUM_CEPSTRA, device=audio.device)
    lifter = 1 + _LIFTER / 2 * torch.sin(math.pi * orders / _LIFTER)
    return mel @ _cosines(_KALDI_MELS).to(audio.device) * lifter, counts


def _kaldi_filters() -> Tensor:
    """Return triangles (257, 23), straight on the mel scale 1127 ln(1 + hz / 700), from 20 Hz to half the rate."""

    def mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log(1 + hz / 700)

    hz = torch.arange(_KALDI_FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE_HZ / _KALDI_FFT
    low, high = mel(torch.tensor([_KALDI_LOW_HZ, SAMPLE_RATE_HZ / 2], dtype=torch.float64))
    step = (high - low) / (_KALDI_MELS + 1)
    peaks = low + step * torch.arange(1, _KALDI_MELS + 1)
    filters = (1 - (mel(hz)[:, None] - peaks).abs() / step).clamp(min=0)
    filters[-1] = 0.0  # Kaldi leaves out the bin at half the rate
    return filters.float()
