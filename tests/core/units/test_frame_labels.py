"""Labels stay with their frames: crops on the grid, rates, and phones at the middle of a frame."""

import numpy as np
import pytest

from core.models.hubert.config import HubertConfig
from core.units.frame_labels import FrameGrid, PhoneInterval, at_grid, matched, phones_of_frames

GRID = FrameGrid()


def test_100_000_random_crops_move_no_label() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(400, 560_000, 100_000)
    wanted = rng.integers(400, 250_001, 100_000)
    for length, most in zip(lengths.tolist(), wanted.tolist(), strict=True):
        crop = GRID.crop(length, most_samples=most, rng=rng)
        # frame t of the crop begins at sample start + 320 t; label first + t belongs to the frame that begins there
        assert crop.start_samples == 320 * crop.first_frame
        assert crop.num_samples == min(length, most) and crop.start_samples + crop.num_samples <= length
        assert crop.first_frame + crop.num_frames <= GRID.num_frames(length)


def test_a_label_that_is_written_into_the_waveform_is_the_one_of_its_frame() -> None:
    rng = np.random.default_rng(1)
    num_samples = 50_000
    waveform = np.arange(num_samples)  # each sample says where it is
    labels = np.array([t * 320 for t in range(GRID.num_frames(num_samples))])  # each label where its frame begins
    for _ in range(200):
        crop = GRID.crop(num_samples, most_samples=int(rng.integers(400, num_samples)), rng=rng)
        audio = waveform[crop.start_samples : crop.start_samples + crop.num_samples]
        own = labels[crop.first_frame : crop.first_frame + crop.num_frames]
        frames = audio[: GRID.num_samples(crop.num_frames)]
        assert np.array_equal(frames[::320][: crop.num_frames], own)
        assert len(own) == (len(audio) - 400) // 320 + 1


def test_crops_reach_everywhere_and_the_beginning_without_randomness() -> None:
    rng = np.random.default_rng(2)
    starts = {GRID.crop(4000, most_samples=2000, rng=rng).first_frame for _ in range(200)}
    assert starts == set(range(7))  # (4000 - 2000) // 320 + 1
    assert GRID.crop(4000, most_samples=2000, rng=None).first_frame == 0


def test_the_grid_is_the_models() -> None:
    config = HubertConfig()
    for n in range(0, 3000, 7):
        assert GRID.num_frames(n) == config.output_lengths(n)
    assert GRID.num_frames(GRID.num_samples(37)) == 37 and GRID.num_frames(GRID.num_samples(37) - 1) == 36


def test_rates_that_fall_on_the_grid() -> None:
    labels = np.arange(11)
    assert at_grid(labels, labels_hz=100.0, grid=GRID).tolist() == [0, 2, 4, 6, 8, 10]
    assert at_grid(labels, labels_hz=50.0, grid=GRID).tolist() == labels.tolist()
    for rate in (75.0, 25.0):
        with pytest.raises(ValueError, match="do not fall on frames at 50 Hz"):
            at_grid(labels, labels_hz=rate, grid=GRID)


def test_labels_may_differ_from_the_audio_by_one_frame() -> None:
    labels = np.arange(10)
    assert len(matched(labels, num_frames=9)) == 9
    assert len(matched(labels, num_frames=11)) == 10
    with pytest.raises(ValueError, match="10 labels for 12 frames"):
        matched(labels, num_frames=12)


def test_phones_at_the_middle_of_a_frame() -> None:
    # middles at 12.5, 32.5, 52.5, 72.5, 92.5 ms
    intervals = [PhoneInterval(0.05, 0.08, "b"), PhoneInterval(0.0, 0.0325, "a")]
    assert phones_of_frames(intervals, num_frames=5, grid=GRID) == ["a", None, "b", "b", None]
