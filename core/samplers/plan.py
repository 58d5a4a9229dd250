"""The data plan: which examples make step k, as a pure function of (seed, segment, sources, rules).

    plan = Plan([Source("train", index.durations_s)], config.plan, seed=config.seed)
    for step in plan.steps(position):                                      # endless; from anywhere at the same cost
        mine = rank_micro_batches(step, dp_rank=ranks.dp_rank, dp_size=ranks.dp_size)
        ...
        position = step.after                                              # all there is to save

The stream of draws (blend.py) is cut into chunks, and the rules (rules.py) make each chunk into whole steps by itself,
so a resume rebuilds one chunk, whatever the step. A step is the same on any number of ranks.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, overload

import numpy as np

from core.samplers.admission import Source, admit
from core.samplers.blend import Blend, Draw, Draws
from core.samplers.evaluation import EvaluationPlan
from core.samplers.rules import Chunk, Rules, divisors
from core.samplers.settings import PlanConfig
from core.samplers.statistics import PlanStatistics
from core.seeding import key64

__all__ = [
    "Draw", "EvaluationPlan", "Plan", "PlanConfig", "PlannedStep", "Position", "Source", "check_dp_size",
    "rank_micro_batches",
]  # fmt: skip

_SAMPLE = 100_000  # draws that the rules prepare for


class Position(NamedTuple):
    """A place between two steps: `offset` steps of chunk `chunk` are done. As JSON: `_asdict()`, `Position(**...)`."""

    segment: int
    chunk: int
    offset: int


class DrawnLengths(Protocol):
    """How long each draw counts, where that differs from epoch to epoch."""

    def __call__(self, draws: Draws, *, segment: int) -> np.ndarray:
        """Return (N,) float32, at most `draws.length`."""
        ...


class MicroBatches(Sequence[list[Draw]]):
    """The micro-batches of one step, made when they are asked for: a rank makes its own and no others."""

    def __init__(self, chunk: Chunk, *, first: int, num: int) -> None:
        self._chunk = chunk
        self._numbers = range(first, first + num)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> list[Draw]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Draw]]: ...
    def __getitem__(self, index: int | slice) -> list[Draw] | list[list[Draw]]:
        if isinstance(index, slice):
            return [self._chunk.micro_batch(number) for number in self._numbers[index]]
        return self._chunk.micro_batch(self._numbers[index])

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # sent to another process as plain lists, not with the whole chunk


class PlannedStep(NamedTuple):
    """One step: its micro-batches, `micro_batches_per_step` of them (some may be empty), and the position after it."""

    micro_batches: Sequence[list[Draw]]
    after: Position


class Plan:
    """The endless sequence of steps over weighted sources. Raise ValueError for sources that cannot be planned.

    `rules` is the section that configures them. `segment` counts the changes of the blend within a run: each segment is
    a plan of its own. `lengths`: what of each draw is read, where that is a random part of its example.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        rules: Rules,
        *,
        seed: int,
        segment: int = 0,
        lengths: DrawnLengths | None = None,
    ) -> None:
        _check_sources(sources)
        self.rules = rules
        self.seed = seed
        self.segment = segment
        self._sources = sources
        self._lengths = lengths
        self._admitted = [admit(source, rules.budget) for source in sources]
        self._blend = Blend(self._admitted, seed=seed, segment=segment)
        sample = self._draws(0, min(_SAMPLE, sum(one.num for one in self._admitted))).length
        self._batching = rules.batching(self._admitted, sample)

    def in_segment(self, segment: int) -> "Plan":
        """Return the plan of another segment over the same sources."""
        if segment == self.segment:
            return self
        return Plan(self._sources, self.rules, seed=self.seed, segment=segment, lengths=self._lengths)

    def steps(self, start: Position | None = None) -> Iterator[PlannedStep]:
        """Return the steps from a position on (default: from the first of this segment), without end."""
        start = start or Position(self.segment, 0, 0)
        if start.segment != self.segment:
            raise ValueError(
                f"the position is in segment {start.segment} of the data, this plan is segment {self.segment}: "
                f"continue with the blend of segment {start.segment}, or accept the change (run.accept_data=true), "
                f"which begins a new segment at Position(segment={self.segment}, chunk=0, offset=0)"
            )
        if start.chunk < 0 or start.offset < 0:
            raise ValueError(f"{start} is no position: chunk and offset count from 0")
        chunk = self.chunk(start.chunk)
        if start.offset > chunk.num_steps:
            raise ValueError(
                f"{start} lies behind the {chunk.num_steps} steps of its chunk: the data or the rules of the plan are "
                f"not those it was saved with; restore them, or start a new run"
            )
        return self._steps_from(chunk, start)

    def chunk(self, number: int) -> Chunk:
        """Return chunk `number` of this segment: time and memory follow from its own size only."""
        draws = self._draws(*self._batching.stretch(self._blend, number))
        return self._batching.make_chunk(draws, key=key64(self.seed, "plan.order", self.segment, number))

    @property
    def num_examples(self) -> int:
        """The number of examples of all sources, those that the rules skip included."""
        return sum(len(one.source.lengths) for one in self._admitted)

    @property
    def crop_length(self) -> float | None:
        """The length that the reader crops examples to; None where none is to be cropped."""
        return self.rules.budget.allowed if self.rules.budget.over_budget == "crop" else None

    @cached_property
    def statistics(self) -> PlanStatistics:
        """What the plan skips and batches; `statistics.describe()` says it in lines for the log."""
        chunk = self.chunk(0)
        return PlanStatistics(self.rules, self._admitted, chunk, advice=self._batching.advice(chunk))

    @property
    def fingerprint(self) -> str:
        """A hash of the sources, other once one is added, removed, renamed, weighted or cut differently."""
        sources = [(one.source, one.checksum) for one in self._admitted]
        facts = [(source.name, source.weight, len(source.lengths), checksum) for source, checksum in sources]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()

    def _draws(self, first: int, num: int) -> Draws:
        draws = self._blend.draws(first, num)
        return draws if self._lengths is None else draws._replace(length=self._lengths(draws, segment=self.segment))

    def _steps_from(self, chunk: Chunk, start: Position) -> Iterator[PlannedStep]:
        per_step = self.rules.micro_batches_per_step
        number, offset = start.chunk, start.offset
        while True:
            for step in range(offset, chunk.num_steps):
                is_last = step + 1 == chunk.num_steps
                after = Position(self.segment, number + 1, 0) if is_last else Position(self.segment, number, step + 1)
                yield PlannedStep(MicroBatches(chunk, first=step * per_step, num=per_step), after)
            number, offset = number + 1, 0
            chunk = self.chunk(number)


def rank_micro_batches(step: PlannedStep, *, dp_rank: int, dp_size: int) -> list[list[Draw]]:
    """Return this rank's share of a step: micro-batches dp_rank, dp_rank + dp_size, ...

    Raise ValueError when the micro-batches cannot be shared out evenly.
    """
    check_dp_size(dp_size, micro_batches_per_step=len(step.micro_batches))
    assert 0 <= dp_rank < dp_size, (dp_rank, dp_size)
    return list(step.micro_batches[dp_rank::dp_size])


def check_dp_size(dp_size: int, *, micro_batches_per_step: int, alike: int | None = None) -> None:
    """Raise ValueError unless every one of dp_size ranks gets the same number of micro-batches.

    And unless those that the ranks take at the same time are alike, where only `alike` of a step are.
    """
    if dp_size < 1 or micro_batches_per_step % dp_size:
        raise ValueError(
            f"dp size {dp_size} must divide plan.micro_batches_per_step={micro_batches_per_step}; "
            f"use {divisors(micro_batches_per_step)}"
        )
    if alike is not None and alike % dp_size:
        raise ValueError(
            f"dp size {dp_size} must divide plan.alike_micro_batches={alike}, or ranks wait for each other's longer "
            f"micro-batches; use {divisors(alike)}, or set plan.alike_micro_batches to "
            f"{divisors(micro_batches_per_step, multiple_of=dp_size)}"
        )


def _check_sources(sources: Sequence[Source]) -> None:
    if not sources:
        raise ValueError("a plan needs at least one source; name one in the blend")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise ValueError(f"source {source.name!r} occurs {names.count(source.name)} times; name each source once")
        if isinstance(source.weight, bool) or not isinstance(source.weight, int) or source.weight < 1:
            raise ValueError(f"source {source.name!r}: weight={source.weight!r} must be an integer of at least 1")
