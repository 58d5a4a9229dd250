"""Augmentation of speech: the waveform (speed, gain, noise) and its features (SpecAugment).

All randomness comes from the generator that is handed in, keyed by the sample's place in the data plan, so a sample
is augmented equally in whatever batch, worker or order it is read.
"""

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from torch import Tensor

from core.config.schema import section
from core.speech.audio import file_duration_s, read_audio
from core.speech.resampling import resample

_AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
_LARGEST_EXPONENT = 2.0  # Gaussian noise falls with frequency as 1 / f**x, x between 0 (white) and this (brown)


@section
class AugmentConfig:
    """Changes of a training utterance's waveform, in this order; by default none."""

    speed_factors: list[float] = dataclasses.field(default_factory=list)  # equally likely, e.g. [0.9, 1.0, 1.1]
    # Up to so much is cut off the beginning. Subsampled frames then fall elsewhere in every epoch, so that a small
    # corpus cannot be learned by heart frame by frame.
    trim_s: float = 0.0
    gain_db: float = 0.0  # louder or softer by up to so much
    noise_probability: float = 0.0
    noise_snr_db: list[float] = dataclasses.field(default_factory=lambda: [10.0, 30.0])  # lowest, highest
    noise_folder: str | None = None  # clips to take noise from, e.g. MUSAN; null: Gaussian noise of any color

    def __post_init__(self) -> None:
        wrong = [factor for factor in self.speed_factors if not 0.5 <= factor <= 2.0]
        if wrong:
            raise ValueError(f"speed_factors={self.speed_factors} must lie between 0.5 and 2.0, unlike {wrong}")
        if self.trim_s < 0:
            raise ValueError(f"trim_s={self.trim_s} must be at least 0: the most that is cut off")
        if self.gain_db < 0:
            raise ValueError(f"gain_db={self.gain_db} must be at least 0: it is the largest change either way")
        if not 0 <= self.noise_probability <= 1:
            raise ValueError(f"noise_probability={self.noise_probability} must be between 0 and 1")
        if len(self.noise_snr_db) != 2 or self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise ValueError(f"noise_snr_db={self.noise_snr_db} must be [lowest, highest]")
        if self.noise_folder is not None and self.noise_probability == 0:
            raise ValueError(f"noise_folder={self.noise_folder} has no effect with noise_probability=0; use e.g. 0.5")


@section
class SpecAugmentConfig:
    """Masks on features (Park et al. 2019, arXiv:1904.08779); a count of 0 turns them off."""

    num_freq_masks: int = 2
    freq_width_bins: int = 20  # at most
    num_time_masks: int = 2
    time_width_frames: int = 40  # at most, and
    time_width_share: float = 0.1  # at most this share of the utterance

    def __post_init__(self) -> None:
        for name in ("num_freq_masks", "freq_width_bins", "num_time_masks", "time_width_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if not 0 <= self.time_width_share <= 1:
            raise ValueError(f"time_width_share={self.time_width_share} must be between 0 and 1")


class Augment:
    """Waveform augmentation: `augment(samples, rng=generator(...))` gives new samples (S',) float32."""

    def __init__(self, config: AugmentConfig, *, sample_rate_hz: int) -> None:
        self.config = config
        self.sample_rate_hz = sample_rate_hz
        self.clips = None
        if config.noise_folder is not None:
            self.clips = NoiseClips(Path(config.noise_folder), sample_rate_hz=sample_rate_hz)

    def __call__(self, samples: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        config = self.config
        if config.speed_factors:
            samples = change_speed(samples, factor=config.speed_factors[rng.integers(len(config.speed_factors))])
        if config.trim_s > 0:
            most = min(round(config.trim_s * self.sample_rate_hz), len(samples) // 2)
            samples = samples[rng.integers(most + 1) :]
        if config.gain_db > 0:
            samples = samples * np.float32(10 ** (rng.uniform(-config.gain_db, config.gain_db) / 20))
        if rng.random() < config.noise_probability:
            lowest_db, highest_db = config.noise_snr_db
            snr_db = rng.uniform(lowest_db, highest_db)
            if self.clips is not None:
                noise = self.clips.draw(len(samples), rng=rng)
            else:
                noise = gaussian_noise(len(samples), exponent=rng.uniform(0, _LARGEST_EXPONENT), rng=rng)
            samples = add_noise(samples, noise=noise, snr_db=snr_db)
        return samples


class NoiseClips:
    """The audio files below a folder as a source of noise; each is opened once at the start, to fail early."""

    def __init__(self, folder: Path, *, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _AUDIO_SUFFIXES)
        if not self.paths:
            raise ValueError(f"noise_folder={folder} holds no audio file ({' '.join(sorted(_AUDIO_SUFFIXES))})")
        self.durations_s = np.zeros(len(self.paths))
        for row, path in enumerate(self.paths):
            try:
                self.durations_s[row] = file_duration_s(path)
            except soundfile.SoundFileError as error:
                raise ValueError(f"noise_folder={folder}: {error}; repair or remove this file") from None

    def draw(self, num_samples: int, *, rng: np.random.Generator) -> np.ndarray:
        """Return a random part of a random clip (S,), repeated where the clip is shorter."""
        row = int(rng.integers(len(self.paths)))
        wanted_s = num_samples / self.sample_rate_hz
        start_s = rng.uniform(0, max(0.0, self.durations_s[row] - wanted_s))
        noise = read_audio(
            self.paths[row], sample_rate_hz=self.sample_rate_hz, start_s=start_s, duration_s=wanted_s + 0.01
        )
        return np.resize(noise, num_samples)


def change_speed(samples: np.ndarray, *, factor: float) -> np.ndarray:
    """Play samples (S,) `factor` times as fast: ceil(S / factor) of them, the pitch times `factor` (Ko et al. 2015)."""
    ratio = Fraction(factor).limit_denominator(100)
    return resample(samples, from_hz=ratio.numerator, to_hz=ratio.denominator)


def gaussian_noise(num_samples: int, *, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise (S,) whose power falls with frequency as 1 / f**exponent."""
    num_bins = num_samples // 2 + 1
    parts = rng.standard_normal((num_bins, 2), dtype=np.float32)
    amplitude = np.arange(num_bins, dtype=np.float32)
    amplitude[1:] **= np.float32(-exponent / 2)  # and no constant part
    spectrum = parts.view(np.complex64)[:, 0] * amplitude
    return np.fft.irfft(spectrum, n=num_samples)


def add_noise(samples: np.ndarray, *, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Return samples + g noise, with 10 log10(signal power / noise power) = snr_db over the whole utterance.

    Silence on either side leaves the samples as they are: no gain gives it a ratio.
    """
    signal_power = np.mean(np.square(samples), dtype=np.float64)
    noise_power = np.mean(np.square(noise), dtype=np.float64)
    if signal_power == 0 or noise_power == 0:
        return samples
    gain = np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))
    return samples + np.float32(gain) * noise


def spec_augment(features: Tensor, *, config: SpecAugmentConfig, rng: np.random.Generator) -> Tensor:
    """Set bands and spans of an utterance's features (T, F) to 0, which is the mean after normalization.

    A mask's width is uniform from 0 to the largest allowed, its place uniform among those where it fits.
    """
    num_frames, num_bins = features.shape
    widest_bins = min(config.freq_width_bins, num_bins)
    widest_frames = min(config.time_width_frames, int(config.time_width_share * num_frames))
    features = features.clone()
    for _ in range(config.num_freq_masks):
        features[:, _span(widest_bins, within=num_bins, rng=rng)] = 0.0
    for _ in range(config.num_time_masks):
        features[_span(widest_frames, within=num_frames, rng=rng)] = 0.0
    return features


def _span(widest: int, *, within: int, rng: np.random.Generator) -> slice:
    width = int(rng.integers(widest + 1))
    start = int(rng.integers(within - width + 1))
    return slice(start, start + width)
