"""What a plan asks of its batch rules. Bucketing (bucketing.py) is one way to follow them; a plan knows none of them.

A section of YAML is the rules; for the sources of one plan it prepares a batching, which makes chunk after chunk.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from core.samplers.admission import Admitted
from core.samplers.blend import Blend, Draw, Draws
from core.samplers.budget import Budget


class Chunk(NamedTuple):
    """Some draws of the stream made into whole steps: micro-batch i is of step i // micro_batches_per_step."""

    draws: Draws
    order: np.ndarray  # (N,) int64: the draws, micro-batch by micro-batch
    starts: np.ndarray  # (M,) int64: where in `order` each micro-batch begins
    sizes: np.ndarray  # (M,) int64: how many examples it has; 0 where there were too few to go round
    row_length: np.ndarray  # (M,) float64: how long its rows are: as its longest example, or as its static shape
    num_rows: np.ndarray  # (M,) int64: its examples, or the rows of its static shape
    num_steps: int

    def micro_batch(self, number: int) -> list[Draw]:
        start = self.starts[number]
        cuts = self.order[start : start + self.sizes[number]]
        source, epoch, row, _, _ = self.draws
        return list(map(Draw, source[cuts].tolist(), epoch[cuts].tolist(), row[cuts].tolist()))

    def length(self) -> float:
        return float(self.draws.length.sum(dtype=np.float64))

    def padded_length(self) -> np.ndarray:
        """Return the length of each micro-batch with its padding: (M,) float64."""
        return self.num_rows * self.row_length


class Batching(Protocol):
    """Makes the chunks of one plan.

    `stretch` gives the draws of the stream that are chunk `number`: (first, how many). `make_chunk` makes steps of some
    draws, of these alone, in an order that `key` gives. `advice` says which key of YAML would make the micro-batches of
    a chunk fuller, or nothing.
    """

    def stretch(self, blend: Blend, number: int) -> tuple[int, int]: ...
    def make_chunk(self, draws: Draws, *, key: int) -> Chunk: ...
    def advice(self, chunk: Chunk) -> str: ...


class Rules(Protocol):
    """The batch rules of a plan, as its section has them.

    `alike_micro_batches` of a step are of like length; None: all of them. `budget`: the limits on an example and on a
    micro-batch. `batching` prepares what makes the chunks, for `sample` (N,), lengths as they will be drawn; it raises
    ValueError for sources that the rules cannot be followed with.
    """

    @property
    def micro_batches_per_step(self) -> int: ...
    @property
    def alike_micro_batches(self) -> int | None: ...
    @property
    def budget(self) -> Budget: ...
    def batching(self, admitted: Sequence[Admitted], sample: np.ndarray) -> Batching: ...


def divisors(number: int, *, multiple_of: int = 1) -> str:
    """Return the divisors of a number that are multiples of another, in words: `1, 2, 4 or 8`."""
    *most, last = [str(one) for one in range(1, number + 1) if number % one == 0 and one % multiple_of == 0]
    return f"{', '.join(most)} or {last}" if most else last
