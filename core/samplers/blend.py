"""The stream of draws: sources interleaved by integer weights, each passing over its examples again and again.

The stream is endless and nothing of it is stored: any stretch of it is computed from its place alone.
"""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import numpy as np

from core.samplers.admission import Admitted
from core.samplers.permutation import endless_passes, mix64
from core.seeding import key64

_MAX_PERIOD = 1_000_000


class Draw(NamedTuple):
    """One example of a micro-batch: the number of its source, which pass over that source, its row there."""

    source: int
    epoch: int
    row: int


class Draws(NamedTuple):
    """A stretch of the stream as arrays, one element a draw."""

    source: np.ndarray  # (N,) int16
    epoch: np.ndarray  # (N,) int64
    row: np.ndarray  # (N,) uint32
    length: np.ndarray  # (N,) float32, as it counts in a batch
    repeats: bool  # whether an example may occur twice

    def identities(self, *, key: int) -> np.ndarray:
        """Return a keyed number for each draw that looks random, equal only where the example is: (N,) uint64."""
        examples = (self.source.astype(np.uint64) << np.uint64(40)) | self.row.astype(np.uint64)
        return mix64(examples ^ np.uint64(key))


class Blend:
    """Sources drawn by weight. Of any `period` draws in a row, every source has exactly its share."""

    def __init__(self, admitted: Sequence[Admitted], *, seed: int, segment: int) -> None:
        self.admitted = list(admitted)
        weights = [one.source.weight for one in admitted]
        self._weights = np.array(weights) // gcd(*weights)
        self._order = _interleave(self._weights)
        self._keys = [key64(seed, "plan.source", segment, number) for number in range(len(weights))]

    @property
    def period(self) -> int:
        """The number of draws after which the interleaving begins again: the sum of the (reduced) weights."""
        return len(self._order)

    def stretch(self, number: int, *, most: int) -> tuple[int, int]:
        """Return the stretch of the stream that is chunk `number`, of at most `most` draws: (first, how many).

        A single source is cut into equal parts that end with its epoch. A blend is cut after whole periods, and no
        later than where the source that takes longest has been passed over once.
        """
        if len(self.admitted) > 1:
            sizes = np.array([one.num for one in self.admitted])
            longest_pass = int(np.max(-(-sizes // self._weights)))  # in periods
            periods = max(1, min(most // self.period, longest_pass))
            num = min(periods * self.period, most)
            return number * num, num
        total = self.admitted[0].num
        parts = -(-total // most)
        epoch, part = divmod(number, parts)
        begin, end = part * total // parts, (part + 1) * total // parts
        return epoch * total + begin, end - begin

    def counts(self, position: int) -> np.ndarray:
        """Return how many draws of each source lie before a position of the stream: (sources,) int64."""
        periods, rest = divmod(position, self.period)
        return periods * self._weights + np.bincount(self._order[:rest], minlength=len(self._weights))

    def draws(self, first: int, num: int) -> Draws:
        """Return the draws at positions first .. first + num - 1, in time proportional to `num`, wherever they lie."""
        firsts, ends = self.counts(first).tolist(), self.counts(first + num).tolist()
        parts = []
        repeats = False
        for one, key, begin, end in zip(self.admitted, self._keys, firsts, ends, strict=True):
            epoch, index = endless_passes(begin, end - begin, num_rows=one.num, key=key)
            parts.append((epoch, *one.rows_and_lengths(index)))
            repeats |= begin < end and begin // one.num != (end - 1) // one.num
        source = np.tile(np.roll(self._order, -(first % self.period)), -(-num // self.period))[:num]
        if len(parts) == 1:
            return Draws(source, *parts[0], repeats)
        epoch, row, length = (np.empty(num, array.dtype) for array in parts[0])
        for number, part in enumerate(parts):
            where = np.flatnonzero(source == number)
            epoch[where], row[where], length[where] = part
        return Draws(source, epoch, row, length, repeats)


def _interleave(weights: np.ndarray) -> np.ndarray:
    """Return the source of each of the first sum-of-weights draws, every source as evenly spread as can be."""
    period = int(weights.sum())
    if period > _MAX_PERIOD:
        raise ValueError(
            f"the weights of a blend add up to {period:,} (after division by their common divisor), at most "
            f"{_MAX_PERIOD:,} is accepted; round them, e.g. to percent"
        )
    source = np.repeat(np.arange(len(weights), dtype=np.int16), weights)
    place = np.concatenate([(2 * np.arange(weight) + 1) / weight for weight in weights])
    return source[np.argsort(place, kind="stable")]
