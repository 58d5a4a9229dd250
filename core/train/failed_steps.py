"""Steps that failed, and on which samples: updates without a finite gradient, micro-batches that were out of memory.

The device decides which updates are skipped, without the host: `note` keeps their status, `look` fetches all of them
when the host waits for the device anyway. Each skipped update becomes a line of `skipped_updates.jsonl` with the sample
ids of its micro-batches and their losses, so that a NaN can be traced to the data.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from core.job.errors import is_out_of_memory
from core.job.run import Run
from core.rundir.files import OUT_OF_MEMORY, SKIPPED_UPDATES
from core.rundir.whole_files import append_record
from core.train.protocols import Batch


@dataclass(frozen=True)
class UpdateStatus:
    """The status of an update: `is_skipped` is 1 where it was, the same on all ranks; the rest is this rank's share."""

    is_skipped: Tensor  # scalar, on the device
    loss_sums: Sequence[Tensor]  # a scalar for each micro-batch


class SkippedUpdates:
    """The skipped updates of a run; all ranks call `look` together."""

    def __init__(self) -> None:
        self.in_row = 0  # up to the last look
        self._noted: list[tuple[int, UpdateStatus, list[list[str]]]] = []

    def note(self, step: int, status: UpdateStatus, sample_ids: list[list[str]]) -> None:
        """Keep the status of update `step` (from 1), and the samples of each of this rank's micro-batches."""
        self._noted.append((step, status, sample_ids))

    def look(self, run: Run) -> None:
        """Count what was noted since the last look, and list what was skipped. Waits for the device."""
        noted, self._noted = self._noted, []
        if not noted:
            return
        skipped: list[tuple[int, list[list[str]], list[float | None]]] = []
        flags = torch.stack([status.is_skipped for _, status, _ in noted]).tolist()
        for is_skipped, (step, status, sample_ids) in zip(flags, noted, strict=True):
            self.in_row = self.in_row + 1 if is_skipped else 0
            if is_skipped:
                losses = [float(loss) for loss in status.loss_sums]
                skipped.append((step, sample_ids, [loss if isfinite(loss) else None for loss in losses]))
        if not skipped:
            return
        shares = run.ranks.gather(skipped)[:: run.ranks.tp_size]
        for updates in zip(*shares, strict=True) if run.ranks.is_first else ():
            places = range(len(updates[0][1]))
            append_record(
                run.directory / SKIPPED_UPDATES,
                {
                    "step": updates[0][0],
                    "token": run.token,
                    "micro_batches": [ids[place] for place in places for _, ids, _ in updates],
                    "loss_sums": [losses[place] for place in places for _, _, losses in updates],
                },
            )


@contextlib.contextmanager
def out_of_memory_recorded(run: Run, batch: Batch, *, step: int) -> Iterator[None]:
    """Record by sample ids and shapes which micro-batch of `step` (from 1) needs too much memory; the error goes on."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            _record(run, batch, step=step, error=error)
        raise


def _record(run: Run, batch: Batch, *, step: int, error: BaseException) -> None:
    shapes: dict[str, Any] = {n: list(v.shape) for n, v in vars(batch).items() if isinstance(v, Tensor)}
    facts = {"step": step, "token": run.token, "rank": run.ranks.rank, "phase": run.phases.current.phase}
    told = {"sample_ids": list(batch.sample_ids), "num_targets": batch.num_targets, "shapes": shapes}
    append_record(run.directory / OUT_OF_MEMORY, {**facts, **told, "error": str(error).strip()[:500]})
