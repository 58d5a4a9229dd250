"""Crops of one to three seconds that break no word, with the text that is said in them.

The length of a crop is drawn first: uniform between `min_s` and `max_s`, at most the clip. So a clip of d seconds is
taken whole with probability (max_s - d) / (max_s - min_s): 1 at `min_s` and below, 0 at `max_s` and above, no jump in
between. Then the crop begins and ends in the gaps between words, as near as they allow to that length, and to a
beginning drawn uniformly. Everything is a function of (seed, segment, source, epoch, row).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from core.config.schema import section
from core.samplers.blend import Draws
from core.samplers.permutation import mix64
from core.seeding import key64
from core.text.words import Words

_LENGTH_WEIGHT = 4.0  # a crop 0.1 s too long is as bad as one that begins 0.4 s from where it was drawn


@section
class WordCropConfig:
    """Crops that are `min_s` to `max_s` long; equal numbers give crops of one length."""

    min_s: Annotated[float, Field(gt=0)] = 1.0
    max_s: Annotated[float, Field(gt=0)] = 3.0

    def __post_init__(self) -> None:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s={self.min_s:g} must be at most max_s={self.max_s:g}")


class WordCrop(NamedTuple):
    """A part of a clip, and the words `first` to `last` that are said in it."""

    start_s: float
    end_s: float
    first: int
    last: int


@dataclass(frozen=True)
class CropSampler:
    """The random length and place of each draw's crop; the plan makes batches of crops of like lengths by them."""

    config: WordCropConfig
    seed: int

    def lengths_s(self, draws: Draws, *, segment: int) -> np.ndarray:
        """Return the lengths (N,) float32 that crops are meant to have; around words they come out otherwise."""
        uniform = _uniform(self.seed, "crop.length", segment, draws)
        lengths = self.config.min_s + uniform * (self.config.max_s - self.config.min_s)
        return np.minimum(lengths, draws.length).astype(np.float32)

    def places(self, draws: Draws, *, segment: int) -> np.ndarray:
        """Return (N,) in [0, 1): where among all places for a crop it is meant to begin."""
        return _uniform(self.seed, "crop.place", segment, draws)


def word_crop(words: Words, *, duration_s: float, length_s: float, place: float, max_s: float) -> WordCrop | None:
    """Return the crop of a clip of `duration_s` that comes nearest to `length_s`, never longer than `max_s`.

    None where every word is longer than `max_s`, or there is none.
    """
    if not words.texts:
        return None
    if length_s >= duration_s:
        return WordCrop(0.0, duration_s, 0, len(words.texts) - 1)
    wanted_s = place * (duration_s - length_s)
    near = _near(words, wanted_s - 2 * max_s, wanted_s + length_s + 2 * max_s)
    starts, ends = words.starts_s[near], words.ends_s[near]
    # a crop of the words i to j begins behind word i - 1 and ends before word j + 1
    before = np.append(words.ends_s[near.start - 1] if near.start else 0.0, ends[:-1])[:, None]  # (i, 1)
    after = np.append(starts[1:], words.starts_s[near.stop] if near.stop < len(words.texts) else duration_s)  # (j,)
    least = ends - starts[:, None]  # (i, j): from the first word's start to the last one's end
    is_run = np.tri(len(starts), dtype=bool).T & (least <= max_s)
    if not is_run.any():
        return None
    length = np.clip(length_s, least, np.minimum(after - before, max_s))
    start = np.clip(wanted_s, np.maximum(before, ends - length), np.minimum(starts[:, None], after - length))
    cost = _LENGTH_WEIGHT * np.abs(length - length_s) + np.abs(start - wanted_s)
    i, j = divmod(int(np.where(is_run, cost, np.inf).argmin()), len(starts))
    begin = float(start[i, j])
    return WordCrop(begin, begin + float(length[i, j]), near.start + i, near.start + j)


def _near(words: Words, start_s: float, end_s: float) -> slice:
    """Return the words between two times, and one more on either side: at least one."""
    first = int(np.searchsorted(words.ends_s, start_s)) - 1
    stop = int(np.searchsorted(words.starts_s, end_s)) + 1
    return slice(max(0, first), min(len(words.texts), stop))


@lru_cache(maxsize=16)
def _key(seed: int, stream: str, segment: int) -> int:
    return key64(seed, stream, segment)


def _uniform(seed: int, stream: str, segment: int, draws: Draws) -> np.ndarray:
    """Return (N,) float64 in [0, 1), a function of seed, stream, segment and each draw's source, epoch and row."""
    mixed = np.array([_key(seed, stream, segment)], np.uint64)
    for part in (draws.source, draws.epoch, draws.row):
        mixed = mix64(mixed ^ mix64(part.astype(np.uint64)))
    return (mixed >> np.uint64(11)) * 2.0**-53
