"""Which examples of a source may be drawn, and how long each counts: one look at all lengths, before the first draw."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from core.samplers.budget import Budget

_BLOCK = 1_000_000  # rows looked at together, so that a memory-mapped source is never copied whole


class Source(NamedTuple):
    """What to draw from: the lengths of its examples in the order of its rows (memory-mapped is fine) and its weight.

    Out of every sum-of-weights draws, `weight` are from this source. `unit`: of the lengths, such as `s` or `tokens`.
    """

    name: str
    lengths: np.ndarray
    weight: int = 1
    unit: str = "s"


class Admitted(NamedTuple):
    """The examples of one source that may be drawn."""

    source: Source
    num: int
    num_too_short: int
    num_over_budget: int
    total_length: float  # of all admitted examples, cropped where they are cropped
    longest: float  # of those within the budget
    kept: np.ndarray | None  # the admitted rows, uint32; None when no row is skipped
    crop_length: float | None  # examples are no longer than this
    checksum: int  # of all lengths

    def rows_and_lengths(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of admitted examples and their lengths as they count in a batch: (N,) uint32, float32."""
        rows = index if self.kept is None else self.kept[index]
        lengths = np.asarray(self.source.lengths[rows], np.float32)
        return rows, lengths if self.crop_length is None else np.minimum(lengths, np.float32(self.crop_length))


def admit(source: Source, budget: Budget) -> Admitted:
    """Look at every length of a source. Raise ValueError for a source that cannot be planned, with source and row.

    Memory: nothing when all rows are admitted, else 4 bytes a row.
    """
    allowed = np.float32(budget.allowed)
    keys, unit = budget.keys, budget.unit
    is_skipping = budget.over_budget == "skip"
    num_too_short = num_over_budget = checksum = 0
    first_over: tuple[int, float] | None = None
    total = longest = 0.0
    kept: list[np.ndarray] = []
    for begin, lengths in blocks(source, budget):
        checksum = zlib.crc32(lengths.data, checksum)
        too_short = lengths < np.float32(budget.min_length)
        over = lengths > allowed
        if first_over is None and over.any():
            row = int(over.argmax())
            first_over = begin + row, float(lengths[row])
        num_too_short += int(too_short.sum())
        num_over_budget += int(over.sum())
        is_kept = ~(too_short | over) if is_skipping else ~too_short
        kept.append(np.flatnonzero(is_kept).astype(np.uint32) + np.uint32(begin))
        counted = np.minimum(lengths, allowed) if budget.over_budget == "crop" else lengths
        total += float(counted[is_kept].sum(dtype=np.float64))
        longest = max(longest, float(np.max(lengths, initial=0.0, where=is_kept & ~over)))
    if first_over is not None and budget.over_budget == "error":
        raise ValueError(_over_budget_message(source, budget, first_over, num_over_budget))
    num = sum(map(len, kept))
    if num == 0:
        raise ValueError(
            f"source {source.name!r} has no {keys.example} to draw: {len(source.lengths):,} rows, {num_too_short:,} "
            f"shorter than plan.{keys.min_length}={budget.min_length:g} {unit}, {num_over_budget:,} longer than "
            f"{budget.allowed:g} {unit}; check its manifest and these limits"
        )
    is_cropping = budget.over_budget == "crop" and num_over_budget > 0
    return Admitted(
        source=source,
        num=num,
        num_too_short=num_too_short,
        num_over_budget=num_over_budget,
        total_length=total,
        longest=float(allowed) if is_cropping else longest,
        kept=None if num == len(source.lengths) else np.concatenate(kept),
        crop_length=float(allowed) if is_cropping else None,
        checksum=checksum,
    )


def blocks(source: Source, budget: Budget) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, lengths as contiguous float32) of each block.

    Raise ValueError where a length is none, and for a source whose unit is not that of the budget.
    """
    if source.unit != budget.unit:
        raise ValueError(
            f"source {source.name!r} has lengths in {source.unit}, plan.{budget.keys.total} counts {budget.unit}; "
            "use the plan section of its unit"
        )
    if len(source.lengths) == 0:
        raise ValueError(f"source {source.name!r} has no rows; prepare its manifest again or leave it out")
    for begin in range(0, len(source.lengths), _BLOCK):
        lengths = np.ascontiguousarray(source.lengths[begin : begin + _BLOCK], np.float32)
        is_good = (lengths > 0) & np.isfinite(lengths)
        if not is_good.all():
            row = int(is_good.argmin())
            kind = "duration" if source.unit == "s" else "length"
            raise ValueError(
                f"source {source.name!r} row {begin + row}: a {kind} must be positive and finite, "
                f"not {float(lengths[row]):g} {source.unit}; correct the manifest and build its index again"
            )
        yield begin, lengths


def _over_budget_message(source: Source, budget: Budget, first: tuple[int, float], num: int) -> str:
    key, unit = budget.keys.total if budget.max_length is None else budget.keys.max_length, budget.unit
    more = f" (and {num - 1:,} more)" if num > 1 else ""
    return (
        f"source {source.name!r} row {first[0]}{more}: {first[1]:g} {unit} is over budget, plan.{key} allows "
        f"{budget.allowed:g} {unit}; raise it, or set plan.over_budget to crop, alone or skip"
    )
