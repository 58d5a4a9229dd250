"""Log-mel features: a plain torch module for a batch on any device or one utterance in a loader's worker."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from core.config.schema import section
from core.rundir.whole_files import write_whole

N = TypeVar("N", int, np.ndarray, Tensor)

_SMALLEST_POWER = 1e-10  # -100 dB: digital silence
_STD_FLOOR = 1e-3  # a bin that never changes becomes 0, not rounding noise blown up to variance 1


@section
class FeatureConfig:
    """Log-mel features; the defaults are 25 ms Hann windows every 10 ms at 16 kHz, 80 HTK mel bins."""

    sample_rate_hz: int = 16000
    num_mels: int = 80
    fft_size: int = 400
    window_samples: int = 400
    hop_samples: int = 160
    low_hz: float = 0.0
    high_hz: float | None = None  # null: half of sample_rate_hz
    center: bool = True  # the first frame is centered on the first sample, the ends are mirrored
    scale: Literal["db", "log"] = "db"
    # Each bin to mean 0 and standard deviation 1, over the utterance or over training speech. A word said alone has a
    # mean of its own, so on short utterances `corpus` learns faster; and what needs no end of the utterance can stream.
    normalize: Literal["utterance", "corpus", "none"] = "utterance"

    def __post_init__(self) -> None:
        for name in ("sample_rate_hz", "num_mels", "fft_size", "window_samples", "hop_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.fft_size % 2:
            raise ValueError(f"fft_size={self.fft_size} must be even")
        if self.window_samples > self.fft_size:
            raise ValueError(f"window_samples={self.window_samples} must not exceed fft_size={self.fft_size}")
        if not 0 <= self.low_hz < self.top_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"low_hz={self.low_hz}, high_hz={self.high_hz} must be 0 <= low_hz < high_hz <= "
                f"{self.sample_rate_hz / 2} (half of sample_rate_hz)"
            )

    @property
    def top_hz(self) -> float:
        return self.sample_rate_hz / 2 if self.high_hz is None else self.high_hz


def num_frames(num_samples: N, *, config: FeatureConfig) -> N:
    """Return how many frames `LogMel` makes of so many samples: of one int, or elementwise of an array."""
    if config.center:
        return (num_samples // config.hop_samples + 1) * (num_samples > 0)
    return ((num_samples - config.fft_size) // config.hop_samples + 1) * (num_samples >= config.fft_size)


@dataclass(frozen=True)
class FeatureStats:
    """The mean and standard deviation of each bin over training speech, for `normalize: corpus`."""

    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, features: Iterable[Tensor]) -> "FeatureStats":
        """Compute them over all frames of features (T, F) not normalized; ValueError without any frame."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for one in features:
            one = one.double()
            count, total, squares = count + len(one), total + one.sum(0), squares + one.square().sum(0)
        if not count:
            raise ValueError("no frames to take the mean and standard deviation of")
        mean = total / count
        return cls(mean.tolist(), (squares / count - mean.square()).clamp(min=0).sqrt().tolist())

    @classmethod
    def load(cls, path: Path) -> "FeatureStats":
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps({"mean": self.mean, "std": self.std}))


class LogMel(nn.Module):
    """A module that computes features and frames: what follows an utterance in its row changes nothing.

    Mel power spectra as torchaudio's `MelSpectrogram(n_fft, win_length, hop_length, n_mels, power=2)` with the HTK
    scale and no norm, then 10 log10 (as `AmplitudeToDB`) or the natural logarithm, then normalization. An utterance no
    longer than half a window, which torchaudio refuses, is mirrored as far as it goes.

    The module has no parameters and no buffers: it is fp32 under autocast and in a bf16 model, and it survives
    creation on the meta device.
    """

    def __init__(self, config: FeatureConfig, *, stats: FeatureStats | None = None) -> None:
        """Prepare the filters. `stats`: needed by `normalize: corpus`, and only by that."""
        super().__init__()
        if (config.normalize == "corpus") != (stats is not None):
            raise ValueError(f"normalize={config.normalize} needs {'no ' if stats else ''}stats of training speech")
        self.config = config
        self.stats = stats
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def forward(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Map audio (B, S) and num_samples (B,) to features (B, T, F), zero after the valid frames, frames (B,)."""
        config = self.config
        with torch.autocast(audio.device.type, enabled=False):
            window, filters = self._constants_on(audio.device)
            audio = _at_least(audio.float(), 1 if config.center else config.fft_size)
            if config.center:
                audio = _mirror_ends(audio, num_samples, width=config.fft_size // 2)
            frames = audio.unfold(-1, config.fft_size, config.hop_samples)  # (B, T, W)
            spectrum = torch.fft.rfft(frames * window)  # (B, T, W // 2 + 1)
            power = spectrum.real.square() + spectrum.imag.square()  # 5 times as fast as abs().square()
            mel = (power @ filters).clamp(min=_SMALLEST_POWER)  # (B, T, F)
            features = 10 * mel.log10() if config.scale == "db" else mel.log()
            counts = num_frames(num_samples, config=config)  # (B,)
            is_valid = torch.arange(features.shape[1], device=audio.device) < counts[:, None]  # (B, T)
            if self.stats is not None:
                mean, std = (torch.tensor(values, device=audio.device) for values in (self.stats.mean, self.stats.std))
                features = standardize(features, mean=mean, std=std)
            features = features.where(is_valid[..., None], 0.0)
            if config.normalize == "utterance":
                features = _normalize(features, is_valid=is_valid[..., None], num_frames=counts)
        return features, counts

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            window = torch.hann_window(self.config.window_samples)
            left = (self.config.fft_size - self.config.window_samples) // 2
            window = nn.functional.pad(window, (left, self.config.fft_size - self.config.window_samples - left))
            self._constants[device] = window.to(device), mel_filters(self.config).to(device)
        return self._constants[device]


def standardize(features: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Bring features (..., F) to mean 0 and standard deviation 1, by those (F,) of training speech."""
    return (features - mean) / (std + _STD_FLOOR)


def mel_filters(config: FeatureConfig) -> Tensor:
    """Return triangles (W // 2 + 1, F) of height 1, equally spaced on the HTK scale 2595 log10(1 + hz / 700)."""
    bins_hz = torch.linspace(0, config.sample_rate_hz / 2, config.fft_size // 2 + 1, dtype=torch.float64)
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (config.low_hz, config.top_hz))
    edges_hz = 700 * (10 ** (torch.linspace(low, high, config.num_mels + 2, dtype=torch.float64) / 2595) - 1)
    left, peak, right = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]  # (F,)
    rising = (bins_hz[:, None] - left) / (peak - left)
    falling = (right - bins_hz[:, None]) / (right - peak)
    return torch.minimum(rising, falling).clamp(min=0).float()


def _at_least(audio: Tensor, num_samples: int) -> Tensor:
    return nn.functional.pad(audio, (0, max(0, num_samples - audio.shape[1])))


def _mirror_ends(audio: Tensor, num_samples: Tensor, *, width: int) -> Tensor:
    """Extend (B, S) to (B, S + 2 width): each row is mirrored at its own first and last sample."""
    last = (num_samples[:, None] - 1).clamp(min=0)  # (B, 1)
    distance = torch.arange(1, width + 1, device=audio.device)  # (width,)
    before = audio.gather(1, torch.minimum(distance.flip(0), last))
    after = audio.gather(1, (last - distance).clamp(min=0))
    extended = torch.cat([before, audio, audio.new_zeros(len(audio), width)], dim=1)
    return extended.scatter(1, width + last + distance, after)


def _normalize(features: Tensor, *, is_valid: Tensor, num_frames: Tensor) -> Tensor:
    """Bring each bin of an utterance to mean 0, standard deviation 1 over valid frames; the others stay 0."""
    count = num_frames.clamp(min=1)[:, None, None]  # (B, 1, 1)
    mean = features.sum(1, keepdim=True) / count  # (B, 1, F)
    centered = (features - mean).where(is_valid, 0.0)
    std = (centered.square().sum(1, keepdim=True) / count).sqrt()
    return centered / (std + _STD_FLOOR)
