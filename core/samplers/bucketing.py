"""Bucketing: draws become micro-batches of examples of like length.

draws -> buckets by length -> micro-batches of equal size within the budget -> steps of micro-batches alike in cost and
length -> steps in keyed order, and within each step its micro-batches. A chunk needs nothing of the chunk before.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from core.config.schema import section
from core.samplers.admission import Admitted
from core.samplers.blend import Blend, Draws
from core.samplers.buckets import merge_sparse
from core.samplers.budget import Budget, OverBudget
from core.samplers.micro_batches import count_micro_batches, group_copies, max_copies, split_evenly, spread_copies
from core.samplers.permutation import hashes
from core.samplers.rules import Batching, Chunk, divisors

_COST_CLASSES = 200  # micro-batches whose cost differs by less than 0.5 % of the largest may share a step


@section
class BucketingConfig:
    """The keys that rules with buckets share, whatever the unit of their lengths."""

    micro_batches_per_step: Annotated[int, Field(ge=1)]
    alike_micro_batches: Annotated[int, Field(ge=1)] | None = None
    num_buckets: Annotated[int, Field(ge=1, le=1000)] = 30
    over_budget: OverBudget = "error"
    chunk_draws: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000

    def __post_init__(self) -> None:
        per_step, alike = self.micro_batches_per_step, self.alike_micro_batches
        if alike is not None and per_step % alike:
            raise ValueError(
                f"alike_micro_batches={alike} must divide micro_batches_per_step={per_step}; use {divisors(per_step)}"
            )
        self.budget.check()

    @property
    def budget(self) -> Budget:
        """The limits on an example and on a micro-batch."""
        raise NotImplementedError

    def batching(self, admitted: Sequence[Admitted], sample: np.ndarray) -> Batching:
        """Prepare the buckets for lengths distributed like the sample."""
        return Bucketing(self, admitted, sample)


class Bucketing:
    """Makes the chunks of a plan by buckets whose edges are fixed for the whole segment."""

    def __init__(self, config: BucketingConfig, admitted: Sequence[Admitted], sample: np.ndarray) -> None:
        self._config, self._budget = config, config.budget
        self._num_examples = sum(one.num for one in admitted)
        longest = max(one.longest for one in admitted) or self._budget.allowed  # 0 when all are over the budget
        sample = np.minimum(sample, np.float32(longest))
        self._classes = self._budget.classes(sample, num_buckets=config.num_buckets, longest=longest)

    def stretch(self, blend: Blend, number: int) -> tuple[int, int]:
        return blend.stretch(number, most=self._config.chunk_draws)

    def advice(self, chunk: Chunk) -> str:
        if len(chunk.order) >= self._num_examples:
            return ""
        return f"raise plan.chunk_draws={self._config.chunk_draws} for fuller micro-batches"

    def make_chunk(self, draws: Draws, *, key: int) -> Chunk:
        budget, per_step = self._budget, self._config.micro_batches_per_step
        identity = draws.identities(key=key) if draws.repeats else None
        bucket = self._classify(draws.length, identity)
        if identity is None:
            order = np.argsort(bucket, kind="stable")  # within a bucket as drawn, which is a keyed order already
        else:
            order = group_copies(bucket, identity)
        lengths = draws.length[order]
        num_examples = np.bincount(bucket)  # (K,), none is 0
        longest = np.maximum.reduceat(lengths, np.cumsum(num_examples) - num_examples)
        fitting = np.where(longest > np.float32(budget.allowed), 1, budget.capacity(budget.padded(longest)))
        fewest = -(-num_examples // fitting)
        if identity is not None:
            fewest = np.maximum(fewest, max_copies(bucket[order], identity[order]))
        num_batches = count_micro_batches(num_examples, fewest=fewest, multiple_of=per_step)
        if identity is not None:
            apart = spread_copies(num_examples, num_batches)
            order, lengths = order[apart], lengths[apart]
        starts, sizes = split_evenly(num_examples, num_batches)
        row_length = budget.padded(np.maximum.reduceat(lengths, starts))
        num_rows = budget.num_rows(sizes, row_length)
        num_empty = -len(sizes) % per_step
        columns = [np.append(a, np.zeros(num_empty, a.dtype)) for a in (starts, sizes, row_length, num_rows)]
        place = self._arrange(columns[3] * budget.cost(columns[2]), key=key)
        starts, sizes, row_length, num_rows = (column[place] for column in columns)
        return Chunk(draws, order, starts, sizes, row_length, num_rows, len(sizes) // per_step)

    def _classify(self, lengths: np.ndarray, identity: np.ndarray | None) -> np.ndarray:
        """Return the bucket of each example, of those this chunk uses; what is over budget has one: (N,) uint16.

        `identity`: as of Draws.identities, where examples may be drawn twice.
        """
        bucket = self._classes.of(lengths)
        num_examples = np.bincount(bucket)
        used = np.flatnonzero(num_examples)
        merged = np.zeros(len(num_examples), np.uint16)
        merged[used] = merge_sparse(num_examples[used] / self._budget.capacity(self._classes.upper[used]))
        bucket = merged.take(bucket)
        if self._budget.over_budget == "alone":
            is_over = lengths > np.float32(self._budget.allowed)
            if is_over.any():
                bucket = np.unique(np.where(is_over, np.uint16(len(num_examples)), bucket), return_inverse=True)[1]
        return bucket.astype(np.uint16, copy=False)

    def _arrange(self, cost: np.ndarray, *, key: int) -> np.ndarray:
        """Return an order of the micro-batches (M,): groups of alike ones, and within each group, in keyed order.

        Alike is first in cost, so that no rank waits for another, and among equals in length, as they are in order of
        their buckets already. As many groups as fill it make a step: one, unless `alike_micro_batches` is set.
        """
        size = self._config.alike_micro_batches or self._config.micro_batches_per_step
        width = min(cost.max(), self._budget.total) / _COST_CLASSES
        cost_class = np.minimum(cost / width, np.iinfo(np.uint16).max).astype(np.uint16)
        groups = np.argsort(cost_class, kind="stable").reshape(-1, size)
        keys = hashes(len(groups) + groups.size, key=key)
        group_keys, within_keys = keys[: len(groups)], keys[len(groups) :].reshape(groups.shape)
        within = np.argsort((within_keys >> np.uint64(48)).astype(np.uint16), axis=1, kind="stable")  # 16 bits: faster
        return np.take_along_axis(groups, within, axis=1)[np.argsort(group_keys, kind="stable")].ravel()
