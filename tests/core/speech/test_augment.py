"""Augmentation: exact ratios, the statistics of masks, and randomness that does not depend on the order of calls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from core.seeding import generator
from core.speech.augment import (
    Augment,
    AugmentConfig,
    NoiseClips,
    SpecAugmentConfig,
    add_noise,
    change_speed,
    gaussian_noise,
    spec_augment,
)

RATE = 16000


def _sine(hz: float, *, num_samples: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(num_samples) / RATE)).astype(np.float32)


def _power_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(samples.astype(np.float64) ** 2)))


def _peak_hz(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=2**18))) * RATE / 2**18)


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.95, 1.0, 1.1, 1.37, 2.0])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor: float) -> None:
    faster = change_speed(_sine(1000.0), factor=factor)
    assert faster.dtype == np.float32
    assert len(faster) == np.ceil(round(RATE / factor, 6))
    assert _peak_hz(faster) == pytest.approx(1000.0 * factor, abs=0.5)
    assert _power_db(faster[500:-500]) == pytest.approx(_power_db(_sine(1000.0)), abs=0.05)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.3, 40.0])
def test_noise_is_added_at_exactly_the_ratio(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    signal, noise = _sine(440.0), 7 * rng.standard_normal(RATE, dtype=np.float32)
    added = add_noise(signal, noise=noise, snr_db=snr_db) - signal
    assert _power_db(signal) - _power_db(added) == pytest.approx(snr_db, abs=0.01)
    assert np.corrcoef(added, noise)[0, 1] > 0.999


def test_silence_gets_no_noise_and_silent_noise_changes_nothing() -> None:
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(add_noise(silence, noise=_sine(440.0)[:100], snr_db=10.0), silence)
    np.testing.assert_array_equal(add_noise(_sine(440.0)[:100], noise=silence, snr_db=10.0), _sine(440.0)[:100])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_samples", [2**16, 2**16 + 1])
def test_colored_noise_falls_as_a_power_of_frequency(exponent: float, num_samples: int) -> None:
    noise = gaussian_noise(num_samples, exponent=exponent, rng=np.random.default_rng(0))
    assert noise.shape == (num_samples,) and noise.dtype == np.float32
    assert abs(noise.mean()) < 1e-3 * noise.std()
    power = np.abs(np.fft.rfft(noise)[1:]) ** 2
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(6, 14)]
    slope = np.polyfit(np.arange(8), np.log2(octaves), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)


def test_gain_is_uniform_in_decibels_both_ways() -> None:
    augment = Augment(AugmentConfig(gain_db=6.0), sample_rate_hz=RATE)
    signal = _sine(440.0, num_samples=1600)
    changes = [_power_db(augment(signal, rng=generator(0, "t", k))) - _power_db(signal) for k in range(400)]
    assert -6.0 <= min(changes) < -5.7 and 5.7 < max(changes) <= 6.0
    assert np.mean(changes) == pytest.approx(0, abs=0.5) and np.std(changes) == pytest.approx(12 / 12**0.5, abs=0.3)


def test_a_trim_takes_from_the_beginning_only_and_evenly() -> None:
    signal = np.arange(1600, dtype=np.float32)
    augment = Augment(AugmentConfig(trim_s=100 / RATE), sample_rate_hz=RATE)
    trimmed = [augment(signal, rng=generator(0, "t", k)) for k in range(800)]
    assert all(np.array_equal(one, signal[1600 - len(one) :]) for one in trimmed)
    taken = np.array([1600 - len(one) for one in trimmed])
    assert taken.min() == 0 and taken.max() == 100
    assert taken.mean() == pytest.approx(50, abs=5) and taken.std() == pytest.approx(101 / 12**0.5, abs=2)
    shortest = min(len(augment(signal[:20], rng=generator(0, "t", k))) for k in range(100))
    assert shortest == 10, "half of a short utterance stays"


def test_noise_comes_with_its_probability_and_within_its_range() -> None:
    augment = Augment(AugmentConfig(noise_probability=0.25, noise_snr_db=[5.0, 15.0]), sample_rate_hz=RATE)
    signal = _sine(440.0, num_samples=1600)
    outputs = [augment(signal, rng=generator(0, "t", k)) for k in range(400)]
    ratios = [_power_db(signal) - _power_db(out - signal) for out in outputs if not np.array_equal(out, signal)]
    assert len(ratios) / 400 == pytest.approx(0.25, abs=0.07)
    assert 4.9 < min(ratios) < 6 and 14 < max(ratios) < 15.1


def test_every_speed_is_equally_likely() -> None:
    augment = Augment(AugmentConfig(speed_factors=[0.8, 1.0, 1.25]), sample_rate_hz=RATE)
    lengths = [len(augment(_sine(440.0, num_samples=400), rng=generator(1, "t", k))) for k in range(600)]
    assert set(lengths) == {500, 400, 320}
    assert all(abs(lengths.count(length) - 200) < 50 for length in (500, 400, 320))


def test_by_default_nothing_happens() -> None:
    samples = _sine(440.0)
    np.testing.assert_array_equal(
        Augment(AugmentConfig(), sample_rate_hz=RATE)(samples, rng=generator(0, "t")), samples
    )


def test_the_result_depends_on_the_key_alone(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hum.wav", _sine(50.0, num_samples=3000), RATE)
    for folder in (None, str(tmp_path)):
        config = AugmentConfig(speed_factors=[0.9, 1.0, 1.1], gain_db=6.0, noise_probability=0.7, noise_folder=folder)
        samples = [_sine(300.0 + k, num_samples=2000 + k) for k in range(8)]
        orders = [list(range(8)), [5, 1, 7, 0, 3, 6, 2, 4]]
        results = []
        for order in orders:
            augment = Augment(config, sample_rate_hz=RATE)
            out = {k: augment(samples[k], rng=generator(7, "sample", 0, 3, k)) for k in order}
            masked = {
                k: spec_augment(torch.ones(90, 80), config=SpecAugmentConfig(), rng=generator(7, "mask", k))
                for k in order
            }
            results.append((out, masked))
        for k in range(8):
            np.testing.assert_array_equal(results[0][0][k], results[1][0][k])
            assert torch.equal(results[0][1][k], results[1][1][k])
        assert any(not np.array_equal(results[0][0][k], samples[k]) for k in range(8))


def test_samples_given_are_not_written_to() -> None:
    samples = _sine(440.0)
    samples.flags.writeable = False
    config = AugmentConfig(speed_factors=[1.0], gain_db=6.0, noise_probability=1.0)
    Augment(config, sample_rate_hz=RATE)(samples, rng=generator(0, "t"))
    features = torch.ones(50, 80)
    spec_augment(features, config=SpecAugmentConfig(), rng=generator(0, "t"))
    assert (features == 1).all()


def test_noise_clips_are_cut_at_random_and_repeated_when_short(tmp_path: Path) -> None:
    ramp = np.arange(8000, dtype=np.int16)
    soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="PCM_16")
    (tmp_path / "notes.txt").write_text("no audio")
    clips = NoiseClips(tmp_path, sample_rate_hz=RATE)
    starts = set()
    for k in range(30):
        part = clips.draw(2000, rng=generator(0, "t", k)) * 2**15
        np.testing.assert_array_equal(np.diff(part), np.ones(1999))
        starts.add(int(part[0]))
    assert len(starts) > 20 and min(starts) < 1000 and max(starts) > 5000
    long = clips.draw(20000, rng=generator(0, "t")) * 2**15
    np.testing.assert_array_equal(long, np.tile(ramp, 3)[:20000])


def test_a_noise_folder_without_audio_or_with_a_broken_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no audio file"):
        NoiseClips(tmp_path / "nowhere", sample_rate_hz=RATE)
    (tmp_path / "broken.wav").write_text("text")
    with pytest.raises(ValueError, match=r"broken\.wav.*repair or remove"):
        NoiseClips(tmp_path, sample_rate_hz=RATE)


def _masked(config: SpecAugmentConfig, *, num_frames: int, draws: int) -> np.ndarray:
    ones = torch.ones(num_frames, 80)
    return np.stack([(spec_augment(ones, config=config, rng=generator(0, "t", k)) == 0).numpy() for k in range(draws)])


def test_frequency_masks_are_bands_of_uniform_width_and_place() -> None:
    config = SpecAugmentConfig(num_freq_masks=1, freq_width_bins=20, num_time_masks=0)
    masked = _masked(config, num_frames=7, draws=4000)
    assert (masked == masked[:, :1]).all(), "a band covers all frames"
    bands = masked[:, 0]  # (draws, F)
    widths = bands.sum(axis=1)
    assert (np.abs(np.diff(bands.astype(int), axis=1)).sum(axis=1) <= 2).all(), "one band"
    counts = np.bincount(widths, minlength=21)
    assert len(counts) == 21 and np.all(np.abs(counts - 4000 / 21) < 5 * (4000 / 21) ** 0.5)
    starts = bands.argmax(axis=1)[widths == 10]
    assert starts.min() < 8 and 62 < starts.max() <= 70 and starts.mean() == pytest.approx(35, abs=6)


def test_time_masks_are_stretches_no_wider_than_the_limit_and_the_share() -> None:
    config = SpecAugmentConfig(num_freq_masks=0, num_time_masks=1, time_width_frames=40, time_width_share=0.1)
    for num_frames, widest in ((1000, 40), (155, 15), (9, 0)):
        masked = _masked(config, num_frames=num_frames, draws=500)
        assert (masked == masked[..., :1]).all(), "a stretch covers all bins"
        widths = masked[..., 0].sum(axis=1)
        assert widths.max() == widest and widths.mean() == pytest.approx(widest / 2, rel=0.1)


def test_the_number_of_masks_is_the_configured_one() -> None:
    config = SpecAugmentConfig(num_freq_masks=0, num_time_masks=3, time_width_frames=3, time_width_share=1.0)
    starts = np.diff(_masked(config, num_frames=500, draws=300)[..., 0].astype(int), axis=1, prepend=0) == 1
    counts = starts.sum(axis=1)
    assert counts.max() == 3 and counts.mean() == pytest.approx(3 * 3 / 4, abs=0.2)  # width 0 a quarter of the time


def test_masked_features_keep_every_other_value() -> None:
    features = torch.randn(200, 80, generator=torch.Generator().manual_seed(0))
    masked = spec_augment(features, config=SpecAugmentConfig(), rng=generator(0, "t"))
    changed = masked != features
    assert changed.any() and (masked[changed] == 0).all()


def test_an_utterance_without_frames_is_left_alone() -> None:
    assert spec_augment(torch.ones(0, 80), config=SpecAugmentConfig(), rng=generator(0, "t")).shape == (0, 80)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (AugmentConfig, {"speed_factors": [1.0, 90.0]}, r"must lie between 0\.5 and 2\.0, unlike \[90\.0\]"),
        (AugmentConfig, {"trim_s": -1.0}, r"trim_s=-1\.0 must be at least 0"),
        (AugmentConfig, {"gain_db": -1.0}, r"gain_db=-1\.0 must be at least 0"),
        (AugmentConfig, {"noise_probability": 5.0}, r"noise_probability=5\.0 must be between 0 and 1"),
        (AugmentConfig, {"noise_snr_db": [20.0, 10.0]}, r"must be \[lowest, highest\]"),
        (AugmentConfig, {"noise_folder": "musan"}, "noise_folder=musan has no effect with noise_probability=0"),
        (SpecAugmentConfig, {"num_time_masks": -1}, "num_time_masks=-1 must be at least 0"),
        (SpecAugmentConfig, {"time_width_share": 1.5}, r"time_width_share=1\.5 must be between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(section: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(**values)
