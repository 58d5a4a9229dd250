"""When memory runs out: which micro-batch it was, by sample ids and shapes, in `out_of_memory.jsonl`."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from core.job.errors import is_out_of_memory
from core.job.run import Run
from core.rundir.files import OUT_OF_MEMORY
from core.rundir.whole_files import append_record
from core.train.protocols import Batch


@contextlib.contextmanager
def recorded(run: Run, batch: Batch, *, step: int) -> Iterator[None]:
    """Around forward and backward of a micro-batch of `step` (from 1); the error goes on."""
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
