"""A chunk: some draws of the stream, made into whole steps. It needs nothing of the chunk before.

draws -> buckets by length -> dealt into micro-batches within the budget -> steps of micro-batches alike in cost and
length -> steps in keyed order, and within each step its micro-batches.
"""

from typing import NamedTuple

import numpy as np

from core.samplers.blend import Draw, Draws
from core.samplers.buckets import Buckets, merge_sparse
from core.samplers.constant import even_buckets, room_for_copies
from core.samplers.hands import count_hands, deal, equals_together, most_copies, one_by_one
from core.samplers.permutation import hashes
from core.samplers.rules import PlanConfig

_COST_CLASSES = 200  # micro-batches whose cost differs by less than 0.5 % of the largest may share a step


class Chunk(NamedTuple):
    """The micro-batches of a chunk in the order of training: micro-batch i is of step i // micro_batches_per_step."""

    draws: Draws
    order: np.ndarray  # (N,) int64: the draws, micro-batch by micro-batch
    starts: np.ndarray  # (M,) int64: where in `order` each micro-batch begins
    sizes: np.ndarray  # (M,) int64: how many cuts it has; 0 where there were too few to go round
    length_s: np.ndarray  # (M,) float64: how long its rows are: as its longest cut, or as its static shape
    num_rows: np.ndarray  # (M,) int64: its cuts, or the rows of its static shape
    num_steps: int

    def micro_batch(self, number: int) -> list[Draw]:
        start = self.starts[number]
        cuts = self.order[start : start + self.sizes[number]]
        source, epoch, row, _, _ = self.draws
        return list(map(Draw, source[cuts].tolist(), epoch[cuts].tolist(), row[cuts].tolist()))

    def audio_s(self) -> float:
        return float(self.draws.duration_s.sum(dtype=np.float64))

    def padded_s(self) -> np.ndarray:
        """Padded audio of each micro-batch: (M,) float64."""
        return self.num_rows * self.length_s


def make_chunk(draws: Draws, config: PlanConfig, *, buckets: Buckets, key: int) -> Chunk:
    """The steps of some draws; `key` orders them."""
    bucket = _classify(draws.duration_s, config, buckets=buckets)
    if config.size is not None:
        bucket = even_buckets(bucket, size=config.size)
    if draws.repeats:
        identity = draws.identities(key=key)
        if config.size is not None:
            bucket = room_for_copies(bucket, identity, size=config.size)
        order = equals_together(bucket, identity)
    else:
        order = np.argsort(bucket, kind="stable")  # within a bucket as drawn, which is a keyed order already
    durations_s = draws.duration_s[order]
    num_cuts = np.bincount(bucket)  # (K,), none is 0
    longest_s = np.maximum.reduceat(durations_s, np.cumsum(num_cuts) - num_cuts)
    capacity = np.where(longest_s > np.float32(config.allowed_s), 1, config.capacity(config.padded_s(longest_s)))
    least = -(-num_cuts // capacity)
    if draws.repeats:
        least = np.maximum(least, most_copies(bucket[order], identity[order]))
    hands = count_hands(num_cuts, least=least, multiple_of=config.micro_batches_per_step)
    if draws.repeats:
        turns = one_by_one(num_cuts, hands)
        order, durations_s = order[turns], durations_s[turns]
    starts, sizes = deal(num_cuts, hands)
    length_s = config.padded_s(np.maximum.reduceat(durations_s, starts))
    num_rows = sizes if config.shapes is None else config.capacity(length_s)
    num_empty = -len(sizes) % config.micro_batches_per_step
    columns = [np.append(a, np.zeros(num_empty, a.dtype)) for a in (starts, sizes, length_s, num_rows)]
    place = _arrange(columns[3] * config.cost_s(columns[2]), config, key=key)
    starts, sizes, length_s, num_rows = (column[place] for column in columns)
    return Chunk(draws, order, starts, sizes, length_s, num_rows, len(sizes) // config.micro_batches_per_step)


def _classify(durations_s: np.ndarray, config: PlanConfig, *, buckets: Buckets) -> np.ndarray:
    """The bucket of each cut, of those this chunk uses; cuts over the budget have one of their own: (N,) uint16."""
    classes = buckets if config.shapes is None else config.shapes
    bucket = classes.of(durations_s)
    num_cuts = np.bincount(bucket)
    used = np.flatnonzero(num_cuts)
    merged = np.zeros(len(num_cuts), np.uint16)
    merged[used] = merge_sparse(num_cuts[used] / config.capacity(classes.upper_s[used]))
    bucket = merged.take(bucket)
    if config.over_budget == "alone":
        is_over = durations_s > np.float32(config.allowed_s)
        if is_over.any():
            bucket = np.unique(np.where(is_over, np.uint16(len(num_cuts)), bucket), return_inverse=True)[1]
    return bucket.astype(np.uint16, copy=False)


def _arrange(cost_s: np.ndarray, config: PlanConfig, *, key: int) -> np.ndarray:
    """An order of the micro-batches, (M,): G alike make a step; steps, and each step's micro-batches, in keyed order.

    Alike is first in cost, so that no rank waits for another, and among equals in length, as they are in order of their
    buckets already.
    """
    unit_s = min(cost_s.max(), config.max_duration_s) / _COST_CLASSES
    cost_class = np.minimum(cost_s / unit_s, np.iinfo(np.uint16).max).astype(np.uint16)
    steps = np.argsort(cost_class, kind="stable").reshape(-1, config.micro_batches_per_step)  # (steps, G)
    keys = hashes(len(steps) + steps.size, key=key)
    step_keys, within_keys = keys[: len(steps)], keys[len(steps) :].reshape(steps.shape)
    within = np.argsort((within_keys >> np.uint64(48)).astype(np.uint16), axis=1, kind="stable")  # 16 bits sort faster
    return np.take_along_axis(steps, within, axis=1)[np.argsort(step_keys, kind="stable")].ravel()
