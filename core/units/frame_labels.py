"""Labels of frames and the audio that they belong to: one grid, so that a crop never moves one against the other.

Frame t sees the samples [hop t, hop t + window). A crop begins at a multiple of the hop, so that its frames are frames
of the whole clip, and its labels a slice of the clip's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Crop(NamedTuple):
    """The samples [start, start + num) of a clip, and the frames that they have."""

    start_samples: int
    num_samples: int
    first_frame: int
    num_frames: int


@dataclass(frozen=True)
class FrameGrid:
    """The frames of HuBERT: one every 320 samples, each of 400."""

    hop_samples: int = 320
    window_samples: int = 400
    sample_rate_hz: int = 16000

    @property
    def rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    def num_frames(self, num_samples: int) -> int:
        return max(0, (num_samples - self.window_samples) // self.hop_samples + 1)

    def num_samples(self, num_frames: int) -> int:
        """Return the fewest samples that have so many frames."""
        return (num_frames - 1) * self.hop_samples + self.window_samples

    def crop(self, num_samples: int, *, most_samples: int, rng: np.random.Generator | None) -> Crop:
        """Choose at most `most_samples` of a clip, anywhere on the grid; without rng from its beginning."""
        kept = min(num_samples, most_samples)
        places = (num_samples - kept) // self.hop_samples + 1
        first = int(rng.integers(places)) if rng is not None else 0
        return Crop(first * self.hop_samples, kept, first, self.num_frames(kept))


def at_grid(labels: np.ndarray, *, labels_hz: float, grid: FrameGrid) -> np.ndarray:
    """Return one label a frame: every second one of MFCC labels, made every 10 ms with a window of 25 ms.

    ValueError unless the labels' rate is a multiple of the grid's.
    """
    step = labels_hz / grid.rate_hz
    if step != int(step) or step < 1:
        raise ValueError(f"labels at {labels_hz:g} Hz do not fall on frames at {grid.rate_hz:g} Hz; use a multiple")
    return labels[:: int(step)]


def matched(labels: np.ndarray, *, num_frames: int) -> np.ndarray:
    """Return the labels, where their number and that of the audio's frames agree to one; the shorter counts.

    ValueError where they differ by more: then they are not of this audio.
    """
    if abs(len(labels) - num_frames) > 1:
        raise ValueError(f"{len(labels)} labels for {num_frames} frames of audio: they are not of this clip")
    return labels[:num_frames]


class PhoneInterval(NamedTuple):
    """A phone from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    symbol: str


def phones_of_frames(intervals: Iterable[PhoneInterval], *, num_frames: int, grid: FrameGrid) -> list[str | None]:
    """Return the phone at the middle of each frame's window; None where no interval is."""
    ordered = sorted(intervals)
    starts = np.array([interval.start_s for interval in ordered])
    middles_s = (np.arange(num_frames) * grid.hop_samples + grid.window_samples / 2) / grid.sample_rate_hz
    found: Sequence[int] = (np.searchsorted(starts, middles_s, side="right") - 1).tolist()
    return [
        ordered[place].symbol if place >= 0 and middle < ordered[place].end_s else None
        for place, middle in zip(found, middles_s.tolist(), strict=True)
    ]
