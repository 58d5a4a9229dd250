"""The batch rules of a plan: the section that configures them, and their arithmetic (what a cut costs, how many fit).

Durations arrive as float32, so limits hold to float32 accuracy: 10 cuts of 4.8 s fit in 48 s.
"""

from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from core.config.schema import section

ROUNDING = 1 + 1e-6  # of float32 durations


class Shapes(NamedTuple):
    """The few shapes that all micro-batches are padded to, the shortest first."""

    upper_s: np.ndarray  # (K,) float64: how long its rows are, and the longest a cut of it may be
    num_rows: np.ndarray  # (K,) int64

    def of(self, longest_s: np.ndarray) -> np.ndarray:
        """The number of the shape of a micro-batch whose longest cut is this long (uint16, any shape)."""
        found = np.searchsorted(self.upper_s * ROUNDING, longest_s)
        return np.minimum(found, len(self.upper_s) - 1).astype(np.uint16)


@section
class PlanConfig:
    """How draws become micro-batches.

    A step is `micro_batches_per_step` micro-batches, whatever the number of ranks. A micro-batch holds at most
    `max_cuts` cuts and `max_duration_s` of PADDED audio: number of cuts x longest cut. With `quadratic_duration_s` = Q
    a cut of d seconds counts as d + d^2 / Q, for models whose cost grows with the square of the length.
    A cut is over budget when it is longer than `max_cut_s` (default: the longest that fits in `max_duration_s`):
    `over_budget` says whether that is an error, or the cut is cropped by the reader, put alone in a micro-batch of its
    own, or skipped. A cut shorter than `min_cut_s` is skipped. Skipped cuts are counted in `Plan.statistics`.
    `chunk_draws` cuts at most are planned at a time, in `num_buckets` classes of length.
    `constant_cuts`: each micro-batch holds exactly `max_cuts` cuts, so the longest that are allowed must fit in.
    """

    micro_batches_per_step: Annotated[int, Field(ge=1)]
    max_duration_s: Annotated[float, Field(gt=0)]
    max_cuts: Annotated[int, Field(ge=1)] | None = None
    quadratic_duration_s: Annotated[float, Field(gt=0)] | None = None
    num_buckets: Annotated[int, Field(ge=1, le=1000)] = 30
    min_cut_s: Annotated[float, Field(ge=0)] = 0.0
    max_cut_s: Annotated[float, Field(gt=0)] | None = None
    over_budget: Literal["error", "crop", "alone", "skip"] = "error"
    chunk_draws: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    constant_cuts: bool = False

    def __post_init__(self) -> None:
        fits_s = self._longest_that_fits_s()
        if self.max_cut_s is not None and self.max_cut_s > fits_s * ROUNDING:
            raise ValueError(
                f"max_cut_s={self.max_cut_s:g} must fit in one micro-batch: max_duration_s={self.max_duration_s:g} "
                f"holds a cut of at most {fits_s:g} s; lower max_cut_s or raise max_duration_s"
            )
        if self.min_cut_s > self.allowed_s:
            raise ValueError(
                f"min_cut_s={self.min_cut_s:g} must be at most the longest cut allowed, {self.allowed_s:g}"
            )
        if self.constant_cuts:
            self._check_constant()

    def _check_constant(self) -> None:
        if self.max_cuts is None:
            raise ValueError("constant_cuts=true needs max_cuts: how many cuts each micro-batch has")
        if self.over_budget == "alone":
            raise ValueError("over_budget=alone makes micro-batches of one cut; with constant_cuts use crop or skip")
        if self.capacity(np.array(self.allowed_s)) < self.max_cuts:
            raise ValueError(
                f"max_duration_s={self.max_duration_s:g} must hold max_cuts={self.max_cuts} cuts of {self.allowed_s:g} "
                f"s with constant_cuts; raise it to {self.max_cuts * float(self.cost_s(np.array(self.allowed_s))):g}, "
                "or lower max_cut_s"
            )

    @property
    def allowed_s(self) -> float:
        """The longest cut that is not over budget."""
        return self._longest_that_fits_s() if self.max_cut_s is None else self.max_cut_s

    @property
    def size(self) -> int | None:
        """The number of cuts in every micro-batch; None where it varies."""
        return self.max_cuts if self.constant_cuts else None

    @property
    def shapes(self) -> Shapes | None:
        """None: a micro-batch is as long as its longest cut. See ShapedPlanConfig in shapes.py."""
        return None

    def padded_s(self, longest_s: np.ndarray) -> np.ndarray:
        """How long a micro-batch is whose longest cut is this long (float64, any shape)."""
        seconds, shapes = np.asarray(longest_s, np.float64), self.shapes
        return seconds if shapes is None else shapes.upper_s[shapes.of(seconds)]

    def cost_s(self, longest_s: np.ndarray) -> np.ndarray:
        """What one cut counts in a micro-batch whose longest cut is this long (float64, any shape)."""
        seconds = np.asarray(longest_s, np.float64)
        return seconds if self.quadratic_duration_s is None else seconds + seconds**2 / self.quadratic_duration_s

    def capacity(self, longest_s: np.ndarray) -> np.ndarray:
        """How many cuts a micro-batch may hold when its longest is this long: at least 1 (int64, any shape)."""
        fit = np.floor(self.max_duration_s * ROUNDING / self.cost_s(longest_s)).astype(np.int64)
        return np.clip(fit, 1, self.max_cuts)

    def _longest_that_fits_s(self) -> float:
        """The d with d + d^2 / Q = max_duration_s."""
        if self.quadratic_duration_s is None:
            return self.max_duration_s
        half = self.quadratic_duration_s / 2
        return float(np.sqrt(half**2 + self.quadratic_duration_s * self.max_duration_s) - half)
