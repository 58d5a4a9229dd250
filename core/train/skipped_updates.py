"""Updates that were skipped because their gradient was not finite: how many in a row, and on which samples.

The device decides and skips, without the host: `note` keeps its verdict, `look` fetches all of them when the host waits
for the device anyway. Each skipped update becomes a line of `skipped_updates.jsonl` with the sample ids of its
micro-batches and their losses, so that a NaN can be traced to the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from core.job.run import Run
from core.rundir.files import SKIPPED_UPDATES
from core.rundir.whole_files import append_record


@dataclass(frozen=True)
class Verdict:
    """Of one update: `is_skipped` is 1 where it was, the same on all ranks; the rest is this rank's share."""

    is_skipped: Tensor  # scalar, on the device
    loss_sums: Sequence[Tensor]  # a scalar for each micro-batch


class SkippedUpdates:
    """All ranks call `look` together."""

    def __init__(self) -> None:
        self.in_row = 0  # up to the last look
        self._noted: list[tuple[int, Verdict, list[list[str]]]] = []

    def note(self, step: int, verdict: Verdict, sample_ids: list[list[str]]) -> None:
        """Update number `step` (from 1), on the samples of each of this rank's micro-batches."""
        self._noted.append((step, verdict, sample_ids))

    def look(self, run: Run) -> None:
        """Count what was noted since the last look, and list what was skipped. Waits for the device."""
        noted, self._noted = self._noted, []
        if not noted:
            return
        skipped: list[tuple[int, list[list[str]], list[float | None]]] = []
        flags = torch.stack([verdict.is_skipped for _, verdict, _ in noted]).tolist()
        for is_skipped, (step, verdict, sample_ids) in zip(flags, noted, strict=True):
            self.in_row = self.in_row + 1 if is_skipped else 0
            if is_skipped:
                losses = [float(loss) for loss in verdict.loss_sums]
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
