"""Labels of one run made by several jobs of a real SLURM that know nothing of each other."""

import shlex
from collections import Counter
from pathlib import Path

from core.data.index import write_manifest
from core.rundir.files import DONE
from core.rundir.whole_files import read_records
from core.units.label_store import LabelStore
from launchers.here.environment import ROOT
from tests.recipes import runs
from tests.slurm.conftest import Slurm

NUM_JOBS, NUM_SHARDS, SPLITS = 3, 6, ("train", "dev")


def labels(run: Path) -> list[list[int]]:
    stores = [LabelStore.open(run / "labels" / split) for split in SPLITS]
    return [store[row].tolist() for store in stores for row in range(len(store))]


def test_the_jobs_of_a_sweep_share_the_labels_of_one_run(slurm: Slurm, tmp_path: Path) -> None:
    """Every shard is made once, and the labels are those of one job alone, of the recipe's own .sub file."""
    for split, num in (("train", 12), ("dev", 6)):
        write_manifest(runs.demo_cuts(split, num), tmp_path / f"{split}.jsonl")
    manifests = {key: tmp_path / f"{split}.jsonl" for key, split in {
        "data.train": "train", "data.valid": "dev", "quality.fit": "train", "quality.manifest": "dev",
    }.items()}  # fmt: skip
    settings = [*(f"{key}={path}" for key, path in manifests.items()), f"labelling.num_shards={NUM_SHARDS}"]
    recipe = ROOT / "recipes" / "hubert_iter1"
    words = shlex.join([str(tmp_path), str(NUM_JOBS), "--config", str(recipe / "tiny.yaml")])
    sub = slurm.sub(name="labels", program=f"tests.slurm.recording_prepare {words}")
    helpers = ",".join(str(number) for number in range(1, NUM_JOBS + 1))
    slurm.launch("sweep", sub, "labelling.run=shared", f"labelling.helper={helpers}", *settings)
    slurm.launch("--run", "alone", recipe / "tiny_prepare.sub", *settings)
    jobs = [f"labels_sweep-{number}" for number in range(1, NUM_JOBS + 1)]
    for run in (*jobs, "alone"):
        slurm.wait_until_over(run)
        assert (slurm.runs / run / DONE).exists(), slurm.story(run)
    made = Counter(record["what"] for record in read_records(tmp_path / "made.jsonl"))
    of_labels = {f"{split}/{shard}" for split in SPLITS for shard in range(NUM_SHARDS)}
    assert of_labels < made.keys() and len(made) == len(of_labels) + NUM_SHARDS and set(made.values()) == {1}, made
    assert len({record["job"] for record in read_records(tmp_path / "made.jsonl")}) == NUM_JOBS
    shared = slurm.runs / "shared"
    assert labels(shared) == labels(slurm.runs / "alone") and not list(shared.rglob("*-of-*"))
