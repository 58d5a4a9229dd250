"""The budget of a micro-batch: what an example costs, and how many fit, in the unit of their lengths.

Lengths arrive as float32, so limits hold to float32 accuracy: 10 cuts of 4.8 s fit in 48 s.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from core.samplers.buckets import Buckets, make_buckets

ROUNDING = 1 + 1e-6  # of float32 lengths

OverBudget = Literal["error", "crop", "alone", "skip"]


class Shapes(NamedTuple):
    """The few shapes that all micro-batches are padded to, the shortest first."""

    upper: np.ndarray  # (K,) float64: how long its rows are, and the longest an example of it may be
    num_rows: np.ndarray  # (K,) int64

    def of(self, longest: np.ndarray) -> np.ndarray:
        """Return the number of the shape of a micro-batch whose longest example is this long (uint16, any shape)."""
        found = np.searchsorted(self.upper * ROUNDING, longest)
        return np.minimum(found, len(self.upper) - 1).astype(np.uint16)


class BudgetKeys(NamedTuple):
    """The keys of YAML that set a budget, and the noun for an example: the words of its messages."""

    total: str
    max_examples: str
    min_length: str
    max_length: str
    example: str


@dataclass(frozen=True)
class Budget:
    """What a micro-batch may hold: `total` of padded length, number of examples x longest example, in `unit`.

    With `quadratic` = Q an example of length d counts as d + d^2 / Q. An example is over budget when it is longer than
    `max_length`; None stands for the longest that fits in `total`.
    """

    unit: str
    keys: BudgetKeys
    total: float
    max_examples: int | None = None
    quadratic: float | None = None
    min_length: float = 0.0
    max_length: float | None = None
    over_budget: OverBudget = "error"

    def check(self) -> None:
        """Raise ValueError where the limits contradict each other."""
        keys, fits = self.keys, self._longest_that_fits()
        if self.max_length is not None and self.max_length > fits * ROUNDING:
            raise ValueError(
                f"{keys.max_length}={self.max_length:g} must fit in one micro-batch: {keys.total}={self.total:g} holds "
                f"a {keys.example} of at most {fits:g} {self.unit}; lower {keys.max_length} or raise {keys.total}"
            )
        if self.min_length > self.allowed:
            raise ValueError(
                f"{keys.min_length}={self.min_length:g} must be at most the longest {keys.example} allowed, "
                f"{self.allowed:g}"
            )

    @property
    def allowed(self) -> float:
        """The longest example that is not over budget."""
        return self._longest_that_fits() if self.max_length is None else self.max_length

    def cost(self, longest: np.ndarray) -> np.ndarray:
        """Return what one example counts in a micro-batch whose longest is this long (float64, any shape)."""
        length = np.asarray(longest, np.float64)
        return length if self.quadratic is None else length + length**2 / self.quadratic

    def capacity(self, longest: np.ndarray) -> np.ndarray:
        """Return how many examples fit in a micro-batch whose longest is this long: at least 1 (int64, any shape)."""
        fit = np.floor(self.total * ROUNDING / self.cost(longest)).astype(np.int64)
        return np.clip(fit, 1, self.max_examples)

    def padded(self, longest: np.ndarray) -> np.ndarray:
        """Return how long the rows are of a micro-batch whose longest example is this long (float64, any shape)."""
        return np.asarray(longest, np.float64)

    def num_rows(self, sizes: np.ndarray, padded: np.ndarray) -> np.ndarray:
        """Return how many rows micro-batches of so many examples have whose rows are `padded` long (int64)."""
        return sizes

    def classes(self, sample: np.ndarray, *, num_buckets: int, longest: float) -> Buckets | Shapes:
        """Return the classes of like length to make micro-batches in, for examples distributed like the sample."""
        return make_buckets(sample, num_buckets=num_buckets, longest=longest)

    def _longest_that_fits(self) -> float:
        """Return the d with d + d^2 / Q = total."""
        if self.quadratic is None:
            return self.total
        half = self.quadratic / 2
        return float(np.sqrt(half**2 + self.quadratic * self.total) - half)


@dataclass(frozen=True)
class ShapedBudget(Budget):
    """A budget whose micro-batches all have one of a few static shapes, for models that are compiled for each of them.

    The predecessor's `bucket1` padded to the ends of classes of equal width as well, but its batches spanned classes
    and exceeded the budget, and the number of their rows varied.
    """

    num_shapes: int = 1

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes, whose lengths are equally far apart and whose rows are all that fit in."""
        upper = np.linspace(self.min_length, self.allowed, self.num_shapes + 1)[1:]
        return Shapes(upper, self.capacity(upper))

    def padded(self, longest: np.ndarray) -> np.ndarray:
        return self.shapes.upper[self.shapes.of(np.asarray(longest, np.float64))]

    def num_rows(self, sizes: np.ndarray, padded: np.ndarray) -> np.ndarray:
        return self.capacity(padded)

    def classes(self, sample: np.ndarray, *, num_buckets: int, longest: float) -> Shapes:
        return self.shapes
