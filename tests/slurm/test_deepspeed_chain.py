"""A chain of csa_stage1 with ZeRO 2 over two nodes of a real SLURM: killed and continued, it is the uncut run."""

import shlex
from pathlib import Path

from core.rundir.exit_codes import ExitCode
from core.rundir.files import DONE, METRICS, SCORES
from core.rundir.whole_files import read_json, read_records
from tests.recipes import csa_runs, runs
from tests.slurm.conftest import Slurm, lacking

QUICK, SLOW = "0", "4.0"  # seconds a micro-batch: to go on, to have time to break in
NUM_STEPS = 20  # enough that a slow link is at work for a minute
WORDS = (*csa_runs.strategy("zero 2"), f"train.max_steps={NUM_STEPS}", "train.validate_every_steps=5")


def newest_step(run: Path) -> int:
    return max((record["step"] for record in read_records(run / METRICS) if record["phase"] == "train"), default=0)


def test_a_killed_chain_is_the_uncut_run(slurm: Slurm, tmp_path: Path) -> None:
    if not slurm.cluster.isolation:
        lacking("the nodes have no host names of their own")
    config, pace, run = csa_runs.write_config(tmp_path / "corpus"), tmp_path / "pace", slurm.runs / "tiny"
    pace.write_text(QUICK)
    program = f"tests.slurm.paced_csa {shlex.quote(str(pace))} --config {shlex.quote(str(config))}"
    sub = slurm.sub(name="tiny", program=program, nodes=2, tasks=1)
    slurm.launch("-n3", sub, *WORDS)

    slurm.wait_for(lambda: newest_step(run) >= 3, "step 3", run="tiny")
    pace.write_text(SLOW)
    slurm.kill_rank("tiny")
    slurm.wait_for_starts(2, "tiny")
    pace.write_text(QUICK)
    slurm.wait_for(lambda: newest_step(run) >= 6, "step 6", run="tiny")
    pace.write_text(SLOW)
    slurm.shorten(slurm.links("tiny")[1].job_id or "", 5)
    slurm.wait_for_starts(3, "tiny")
    pace.write_text(QUICK)
    slurm.wait_until_over("tiny")

    assert (run / DONE).exists(), slurm.story("tiny")
    started = slurm.events("started", "tiny")
    assert [record["link"] for record in started] == [1, 2, 3]
    assert 0 < started[1]["step"] < started[2]["step"] < NUM_STEPS, "each went on from a checkpoint"
    codes, text = csa_runs.train(config, tmp_path / "uncut", *WORDS, num_ranks=2)
    assert codes == [ExitCode.DONE] * 2, text
    uncut = tmp_path / "uncut" / "tiny"
    assert runs.losses(run) == runs.losses(uncut)
    assert runs.samples(run) == runs.samples(uncut)
    runs.assert_same_state(runs.state(run), runs.state(uncut))
    assert read_json(run / SCORES) == read_json(uncut / SCORES)
