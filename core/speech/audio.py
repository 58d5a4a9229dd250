"""Audio from files: decode (WAV, FLAC, Ogg Vorbis, Opus, MP3), any part of a file, at the rate a model wants."""

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from core.speech.resampling import resample

_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's SF_COUNT_MAX


class AudioError(ValueError):
    """The error of a file that cannot give the audio that was asked for: `path` and `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Decoded(NamedTuple):
    """The content of a file, untouched."""

    samples: np.ndarray  # (S, C) float32, full scale 1.0
    sample_rate_hz: int


def read_audio(
    path: Path,
    *,
    sample_rate_hz: int,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Read a file, or a part of it, as mono float32 samples (S,) at `sample_rate_hz`.

    Without `channel` all channels are averaged. Raises AudioError.
    """
    decoded = decode(path, start_s=start_s, duration_s=duration_s)
    num_channels = decoded.samples.shape[1]
    if channel is None:
        mono = decoded.samples.mean(axis=1) if num_channels > 1 else decoded.samples[:, 0]
    elif channel < num_channels:
        mono = decoded.samples[:, channel]
    else:
        raise AudioError(Path(path), f"has no channel {channel}: it has {num_channels}")
    return resample(mono, from_hz=decoded.sample_rate_hz, to_hz=sample_rate_hz)


def decode(
    path: Path, *, content: bytes | None = None, start_s: float = 0.0, duration_s: float | None = None
) -> Decoded:
    """Read all channels of a file, or of a part of it, at the file's own rate.

    With `content`, what the file holds, nothing is read: `path` only names it in errors.
    A file that ends early gives what it has: the caller knows how much was promised. Raises AudioError where there is
    no file, no audio in it, a decoder that fails, or nothing after `start_s`.
    """
    path = Path(path)
    try:
        with soundfile.SoundFile(path if content is None else io.BytesIO(content)) as file:
            if duration_s is None and file.frames == _UNKNOWN_LENGTH:
                raise AudioError(path, "does not say how long it is (FLAC from a pipe?); encode it again")
            count = -1 if duration_s is None else _round_half_up(duration_s * file.samplerate)
            samples = _read(file, start=_round_half_up(start_s * file.samplerate), count=count)  # (S, C)
            if len(samples) == 0:
                raise AudioError(path, f"holds no samples after {start_s:.3f} s")
            return Decoded(samples, file.samplerate)
    except (OSError, soundfile.SoundFileError, TypeError, MemoryError) as error:  # TypeError: .raw, which says no rate
        raise AudioError(path, _reason(path, content, error)) from None


def zero_mean_unit_variance(samples: np.ndarray, *, epsilon: float) -> np.ndarray:
    """Return samples (S,) with mean 0 and variance 1; `epsilon` is added to the variance, so that silence stays 0."""
    normalized: np.ndarray = (samples - samples.mean()) / np.sqrt(samples.var() + epsilon)
    return normalized


def file_duration_s(path: Path) -> float:
    """Return what a file's header promises; raise soundfile.SoundFileError where it has none."""
    return float(soundfile.info(path).duration)


def _round_half_up(value: float) -> int:
    """Round a number of samples as lhotse does; a float's last digits must not decide."""
    return math.floor(round(value, 6) + 0.5)


def _read(file: soundfile.SoundFile, *, start: int, count: int) -> np.ndarray:
    """Read `count` samples (-1: all) of each channel from `start` on, or as many as there are."""
    if start >= file.frames:
        return np.zeros((0, file.channels), np.float32)
    is_mp3 = file.subtype.startswith("MPEG")
    early = min(start, file.samplerate // 2 if is_mp3 else 0)  # an MP3 frame needs bits sent with earlier ones
    if start > 0:
        file.seek(start - early)
    samples: np.ndarray = file.read(early + count if count >= 0 else -1, dtype="float32", always_2d=True)
    return samples[early:]


def _reason(path: Path, content: bytes | None, error: Exception) -> str:
    """Tell why a file could not be decoded: asked only now, as a look at each file before would cost time."""
    try:
        num_bytes = path.stat().st_size if content is None else len(content)
    except FileNotFoundError:
        return "no such file"
    except OSError as other:
        return f"cannot be read: {other.strerror}"
    if num_bytes == 0:
        return "is empty (0 bytes)"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    return f"cannot be decoded: {_cause(error)}"


def _cause(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.rsplit(": ", maxsplit=1)[-1].rstrip(".")  # soundfile puts "Error opening '<path>': " before it
