"""A changed channel: what it does to loudness and tilt, against a loop over the samples."""

import numpy as np

from core.seeding import generator
from core.speech.channel import Channel, ChannelConfig
from tests.closeness import assert_close

RATE_HZ = 16000


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)


def test_a_tilt_is_its_difference_equation() -> None:
    samples = noise(400)
    found = Channel(ChannelConfig(loudness_db=0.0, tilt=0.9), RATE_HZ)(samples, rng=generator(1, "x"))
    factor = np.float32(generator(1, "x").uniform(-0.9, 0.9))
    expected = [samples[0]] + [samples[n] + factor * samples[n - 1] for n in range(1, len(samples))]
    assert_close(found, expected, rel=1e-6)
    assert abs(factor) > 0.01


def test_the_gain_moves_in_straight_lines_of_decibels_between_knots() -> None:
    samples = np.ones(RATE_HZ * 2, np.float32)
    found = Channel(ChannelConfig(loudness_db=8.0, knot_s=0.25, tilt=0.0), RATE_HZ)(samples, rng=generator(2, "x"))
    bends = np.abs(np.diff(20 * np.log10(found), n=2)) > 1e-3
    assert bends.sum() <= 2 * 9  # a bend at each of the 8 or 9 knots, seen in at most two second differences
    assert np.ptp(20 * np.log10(found)) > 8.0


def test_gains_have_the_spread_that_is_asked_for() -> None:
    channel = Channel(ChannelConfig(loudness_db=6.0, knot_s=0.1, tilt=0.0), RATE_HZ)
    gains_db = [20 * np.log10(channel(np.ones(1, np.float32), rng=generator(seed, "x"))[0]) for seed in range(2000)]
    # a place uniform between two knots: the variance of a mean of two normals, weighted by u and 1 - u, is 2/3
    assert abs(np.mean(gains_db)) < 0.5 and abs(np.std(gains_db) - 6.0 * np.sqrt(2 / 3)) < 0.35


def test_it_is_a_function_of_its_generator() -> None:
    samples, channel = noise(5000), Channel(ChannelConfig(), RATE_HZ)
    one, same, other = (channel(samples, rng=generator(seed, "x")) for seed in (1, 1, 2))
    assert one.dtype == np.float32 and len(one) == len(samples)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
