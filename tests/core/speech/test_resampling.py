"""Resampling against tones written down at the other rate, and against the sum of sincs."""

import numpy as np
import pytest
import torch

from core.speech import audio
from core.speech.audio import resample
from tests.closeness import assert_close

RATE = 16000


def _tones(num_samples: int, *, rate_hz: float, hz: tuple[float, ...] = (220.0, 1333.3, 2950.0)) -> np.ndarray:
    """A sum of sines, which at any rate can be written down without resampling."""
    time_s = np.arange(num_samples) / rate_hz
    return (sum(np.sin(2 * np.pi * f * time_s + f) for f in hz) / (2 * len(hz))).astype(np.float32)


@pytest.mark.parametrize(
    ("from_hz", "to_hz"),
    [(44100, 16000), (48000, 16000), (8000, 16000), (22050, 16000), (9, 10), (11, 10), (16000, 16001)],
)
def test_resampled_tones_are_the_tones_at_the_other_rate(from_hz: int, to_hz: int) -> None:
    lower_nyquist_hz = min(from_hz, to_hz) / 2
    hz = tuple(share * lower_nyquist_hz for share in (0.03, 0.4, 0.85))
    audio = resample(_tones(8000, rate_hz=from_hz, hz=hz), from_hz=from_hz, to_hz=to_hz)
    assert len(audio) == -(-8000 * to_hz // from_hz) and audio.dtype == np.float32
    edge = 100 * to_hz // min(from_hz, to_hz)  # beyond the ends the signal is taken for zero
    np.testing.assert_allclose(audio[edge:-edge], _tones(len(audio), rate_hz=to_hz, hz=hz)[edge:-edge], atol=1e-3)


def test_resampling_up_is_the_sum_of_sincs() -> None:
    rng = np.random.default_rng(0)
    noise = resample(rng.standard_normal(600), from_hz=2, to_hz=1)  # (300,), white
    noise = resample(resample(noise, from_hz=4, to_hz=3), from_hz=3, to_hz=4)  # nothing above 3/4 of Nyquist
    place = np.arange(0, len(noise), 3 / 4)  # Whittaker-Shannon: x(t) = sum over n of x[n] sinc(t - n)
    expected = (noise[None, :] * np.sinc(place[:, None] - np.arange(len(noise))[None, :])).sum(axis=1)
    audio = resample(noise, from_hz=3, to_hz=4)
    inner = slice(80, -80)
    np.testing.assert_allclose(audio[inner], expected[inner], atol=5e-3 * noise.std())


def test_what_the_lower_rate_cannot_hold_is_gone_not_folded() -> None:
    audio = resample(_tones(48000, rate_hz=48000, hz=(8100.0,)), from_hz=48000, to_hz=16000)
    assert 20 * np.log10(np.abs(audio[200:-200]).max() / 0.5) < -65


def test_samples_at_the_right_rate_and_none_at_all_pass_through() -> None:
    samples = _tones(10, rate_hz=RATE)
    np.testing.assert_array_equal(resample(samples, from_hz=RATE, to_hz=RATE), samples)
    assert resample(samples[:0], from_hz=8000, to_hz=RATE).shape == (0,)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (16000, 44100), (10, 9)])
def test_blocks_and_direct_sums_agree(monkeypatch: pytest.MonkeyPatch, from_hz: int, to_hz: int) -> None:
    samples = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    in_blocks = resample(samples, from_hz=from_hz, to_hz=to_hz)
    monkeypatch.setattr(audio, "_LARGEST_PERIOD", 0)
    assert_close(resample(samples, from_hz=from_hz, to_hz=to_hz), in_blocks, rel=2e-6)


@pytest.mark.parametrize("num_samples", [1, 2, 31, 441, 442])
def test_short_signals_keep_their_mean_level(num_samples: int) -> None:
    audio = resample(np.ones(num_samples, np.float32), from_hz=44100, to_hz=16000)
    assert len(audio) == -(-num_samples * 160 // 441) and np.isfinite(audio).all()


def test_the_number_of_threads_changes_no_bit() -> None:
    samples = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(resample(samples, from_hz=9, to_hz=10))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*results)
