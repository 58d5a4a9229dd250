"""Which cuts of a source may be drawn, and how long each counts: one look at all durations, before the first draw."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from core.samplers.rules import PlanConfig

_BLOCK = 1_000_000  # rows looked at together, so that a memory-mapped source is never copied whole


class Source(NamedTuple):
    """A manifest to draw from: its durations in the order of its rows (memory-mapped is fine) and its weight.

    Out of every sum-of-weights draws, `weight` are from this source.
    """

    name: str
    durations_s: np.ndarray
    weight: int = 1


class Admitted(NamedTuple):
    """The cuts of one source that may be drawn."""

    source: Source
    num: int
    num_too_short: int
    num_over_budget: int
    audio_s: float  # of all admitted cuts, cropped where they are cropped
    longest_s: float  # of those within the budget
    kept: np.ndarray | None  # the admitted rows, uint32; None when no row is skipped
    crop_s: float | None  # cuts are no longer than this
    checksum: int  # of all durations

    def cuts(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of admitted cuts and their durations in seconds, as they count in a batch: (N,) uint32, float32."""
        rows = index if self.kept is None else self.kept[index]
        durations = np.asarray(self.source.durations_s[rows], np.float32)
        return rows, durations if self.crop_s is None else np.minimum(durations, np.float32(self.crop_s))


def admit(source: Source, config: PlanConfig) -> Admitted:
    """Looks at every duration of a source. Raises ValueError for a source that cannot be planned, with source and row.

    Memory: nothing when all rows are admitted, else 4 bytes a row.
    """
    allowed_s = np.float32(config.allowed_s)
    is_skipping = config.over_budget == "skip"
    num_too_short = num_over_budget = checksum = 0
    first_over: tuple[int, float] | None = None
    audio_s = longest_s = 0.0
    kept: list[np.ndarray] = []
    for begin, durations in blocks(source):
        checksum = zlib.crc32(durations.data, checksum)
        too_short = durations < np.float32(config.min_cut_s)
        over = durations > allowed_s
        if first_over is None and over.any():
            row = int(over.argmax())
            first_over = begin + row, float(durations[row])
        num_too_short += int(too_short.sum())
        num_over_budget += int(over.sum())
        is_kept = ~(too_short | over) if is_skipping else ~too_short
        kept.append(np.flatnonzero(is_kept).astype(np.uint32) + np.uint32(begin))
        counted = np.minimum(durations, allowed_s) if config.over_budget == "crop" else durations
        audio_s += float(counted[is_kept].sum(dtype=np.float64))
        longest_s = max(longest_s, float(np.max(durations, initial=0.0, where=is_kept & ~over)))
    if first_over is not None and config.over_budget == "error":
        raise ValueError(_over_budget_message(source, config, first_over, num_over_budget))
    num = sum(map(len, kept))
    if num == 0:
        raise ValueError(
            f"source {source.name!r} has no cut to draw: {len(source.durations_s):,} rows, {num_too_short:,} shorter "
            f"than plan.min_cut_s={config.min_cut_s:g} s, {num_over_budget:,} longer than {config.allowed_s:g} s; "
            f"check its manifest and these limits"
        )
    is_cropping = config.over_budget == "crop" and num_over_budget > 0
    return Admitted(
        source=source,
        num=num,
        num_too_short=num_too_short,
        num_over_budget=num_over_budget,
        audio_s=audio_s,
        longest_s=float(allowed_s) if is_cropping else longest_s,
        kept=None if num == len(source.durations_s) else np.concatenate(kept),
        crop_s=float(allowed_s) if is_cropping else None,
        checksum=checksum,
    )


def blocks(source: Source) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, durations as contiguous float32), block by block. Raises ValueError where a duration is none."""
    if len(source.durations_s) == 0:
        raise ValueError(f"source {source.name!r} has no rows; prepare its manifest again or leave it out")
    for begin in range(0, len(source.durations_s), _BLOCK):
        durations = np.ascontiguousarray(source.durations_s[begin : begin + _BLOCK], np.float32)
        is_good = (durations > 0) & np.isfinite(durations)
        if not is_good.all():
            row = int(is_good.argmin())
            raise ValueError(
                f"source {source.name!r} row {begin + row}: a duration must be positive and finite, "
                f"not {float(durations[row]):g} s; correct the manifest and build its index again"
            )
        yield begin, durations


def _over_budget_message(source: Source, config: PlanConfig, first: tuple[int, float], num: int) -> str:
    key = "max_duration_s" if config.max_cut_s is None else "max_cut_s"
    more = f" (and {num - 1:,} more)" if num > 1 else ""
    return (
        f"source {source.name!r} row {first[0]}{more}: {first[1]:g} s is over budget, plan.{key} allows "
        f"{config.allowed_s:g} s; raise it, or set plan.over_budget to crop, alone or skip"
    )
