"""What the ranks of a job with a tp axis of two read, in both orders: each writes its sample ids, and trains nothing.

python -m tests.slurm.reading_ranks FOLDER NUM_STEPS: the folder of a configuration, manifests, and a Shar directory.
"""

import socket
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from core.config.load import load
from core.distributed import Ranks, joined
from core.rundir.environment import link_from_environment
from core.rundir.whole_files import write_json
from recipes.lmu_gigaspeech.assembly import Config, Corpus, build_stream

ORDERS = {"exact": "train.jsonl", "randomized": "shar"}


def read_ids(folder: Path, order: str, num_steps: int, *, ranks: Ranks) -> list[list[list[str]]]:
    """The sample ids of the micro-batches of the first steps, by the recipe's own stream."""
    settings = [f"data.order={order}", f"data.train={folder / ORDERS[order]}", "loader.num_workers=1"]
    config = load(Config, folder / "tiny.yaml", settings)
    run: Any = SimpleNamespace(ranks=ranks, seed=config.run.seed, link=link_from_environment()[0])
    stream = build_stream(config, run, Corpus.open(config, folder, ranks=ranks))
    return [[batch.sample_ids for batch in step.batches] for step in islice(stream.steps(), num_steps)]


if __name__ == "__main__":
    place, steps = Path(sys.argv[1]), int(sys.argv[2])
    with joined(tp_size=2, device="cpu") as me:
        ids = {order: read_ids(place, order, steps, ranks=me) for order in ORDERS}
        facts = {"node": socket.gethostname(), "tp_rank": me.tp_rank, "dp_rank": me.dp_rank}
        write_json(place / f"rank_{me.rank}.json", {**facts, **ids})
