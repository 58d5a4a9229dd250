"""prepare of hubert_iter1, which notes every shard that it makes, and begins once so many jobs are at work.

python -m tests.slurm.recording_prepare FOLDER NUM_JOBS ...: the notes are FOLDER/made.jsonl.
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import recipes.hubert_iter1.prepare as recipe
from core.data import shared_work
from core.rundir.environment import job_from_environment
from core.rundir.whole_files import append_record
from core.units import labelling
from core.units.label_store import LabelShards

if __name__ == "__main__":
    folder, num_jobs = Path(sys.argv.pop(1)), int(sys.argv.pop(1))
    shared_work.POLL_S = 0.1
    write_features, write_labels = labelling.write_features, LabelShards.write

    def note(what: str) -> None:
        """Called before the work, so that a shard that two jobs make shows twice."""
        append_record(folder / "made.jsonl", {"what": what, "job": job_from_environment()})

    def features(path: Path, clips: Iterable[Any], *, dim: int) -> int:
        (folder / f"at_work_{job_from_environment()}").touch()
        while len(list(folder.glob("at_work_*"))) < num_jobs:
            time.sleep(0.05)
        note(path.name)
        return write_features(path, clips, dim=dim)

    def labels(self: LabelShards, shard: int, found: Iterable[Any]) -> None:
        note(f"{self.directory.name}/{shard}")
        write_labels(self, shard, found)

    labelling.write_features, LabelShards.write = features, labels  # type: ignore[method-assign]
    sys.exit(recipe.main())
