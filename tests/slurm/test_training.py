"""The smallest lmu_gigaspeech on a real SLURM: exact through every kind of interruption, and over two nodes."""

import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from core.distributed import Ranks
from core.rundir.checkpoints import COMPLETE
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, DONE, METRICS
from core.rundir.whole_files import read_json, read_records
from launchers.here.environment import ROOT
from manifests.shar import write_shar
from tests.recipes import runs
from tests.slurm.conftest import Slurm, lacking
from tests.slurm.reading_ranks import ORDERS, read_ids

QUICK, SLOW, HALT = "0.05", "1.5", "3600"  # seconds a micro-batch: to go on, to have time to break in, to wait
INTERVAL = 2  # steps between two saves
BY_NUMBER_OF_RANKS = ("plan.micro_batches_per_step=4", "model.encoder.dropout=0", "optim.name=sgd", "optim.lr=0.1",
                      "optim.max_norm=0.5", "train.max_steps=4", "checkpoint.every_steps=null")  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_config(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def pace(tmp_path: Path) -> Path:
    path = tmp_path / "pace"
    path.write_text(QUICK)
    return path


def paced(slurm: Slurm, config: Path, pace: Path, *, more: str = "") -> Path:
    program = f"tests.slurm.paced_recipe {shlex.quote(str(pace))} --config {shlex.quote(str(config))}"
    return slurm.sub(name="tiny", program=program, more=more)


def newest_step(slurm: Slurm, *, token: int = 0) -> int:
    records = read_records(slurm.runs / "tiny" / METRICS)
    return max((r["step"] for r in records if r["phase"] == "train" and r["token"] >= token), default=0)


def wait_for_step(slurm: Slurm, step: int) -> None:
    slurm.wait_for(lambda: newest_step(slurm) >= step, f"step {step}", run="tiny")


def assert_same_run(one: Path, other: Path) -> None:
    assert runs.losses(one) == runs.losses(other)
    assert runs.samples(one) == runs.samples(other)
    runs.assert_same_state(runs.state(one), runs.state(other))


def test_four_links_with_every_interruption_are_the_uncut_run(
    slurm: Slurm, config: Path, pace: Path, tmp_path: Path
) -> None:
    steps = "train.max_steps=30"
    sub = paced(slurm, config, pace, more="#SBATCH --partition=preempt\n#SBATCH --exclusive\n")
    slurm.launch("-n4", sub, steps)

    wait_for_step(slurm, 3)
    host = slurm.wait_for_starts(1, "tiny")["host"]
    pace.write_text(SLOW)
    slurm.ask("sbatch", "--partition=urgent", f"--nodelist={host}", "--exclusive", "--output=/dev/null", "--wrap=:")
    slurm.wait_for_starts(2, "tiny")
    pace.write_text(QUICK)
    wait_for_step(slurm, 8)
    pace.write_text(SLOW)
    slurm.shorten(slurm.links("tiny")[1].job_id or "", 5)
    slurm.wait_for_starts(3, "tiny")
    pace.write_text(QUICK)
    wait_for_step(slurm, newest_step(slurm) + 4)
    pace.write_text(SLOW)
    wait_for_step(slurm, newest_step(slurm) + 1)
    killed_at = newest_step(slurm)
    slurm.kill_rank("tiny")
    pace.write_text(QUICK)
    host = slurm.wait_for_starts(4, "tiny")["host"]
    pace.write_text(SLOW)
    wait_for_step(slurm, newest_step(slurm) + 1)
    lost_at = newest_step(slurm)
    slurm.cluster.kill(host)
    slurm.ask("scontrol", "update", f"nodename={host}", "state=down", "reason=test")
    pace.write_text(QUICK)
    slurm.skip_hold(slurm.links("tiny")[3].job_id or "")
    slurm.wait_until_over("tiny")

    assert (slurm.runs / "tiny" / DONE).exists(), slurm.story("tiny")
    ended, started = slurm.events("ended", "tiny"), slurm.events("started", "tiny")
    assert [record["exit_code"] for record in ended if record.get("token")] == [75, 75, 0]
    assert [record["link"] for record in started] == [1, 2, 3, 4, 4]
    assert [started[1]["step"], started[2]["step"]] == [ended[0]["step"], ended[1]["step"]], "no step is lost"
    assert started[3]["step"] >= killed_at - INTERVAL and started[4]["step"] >= lost_at - INTERVAL
    assert started[4]["host"] != host
    codes, text = runs.link(config, tmp_path / "uncut", steps)
    assert codes == [ExitCode.DONE], text
    assert_same_run(slurm.runs / "tiny", tmp_path / "uncut" / "tiny")


def test_two_nodes_with_two_tasks_each_train_as_one_process(slurm: Slurm, config: Path, tmp_path: Path) -> None:
    if not slurm.cluster.isolation:
        lacking("the nodes have no host names of their own")
    program = f"recipes.lmu_gigaspeech.train --config {shlex.quote(str(config))}"
    sub = slurm.sub(name="tiny", program=program, nodes=2, tasks=2)
    slurm.launch(sub, *BY_NUMBER_OF_RANKS)
    slurm.wait_until_over("tiny")
    run = slurm.runs / "tiny"
    assert (run / DONE).exists(), slurm.story("tiny")
    assert slurm.facts(slurm.links("tiny")[0].job_id or "")["NumNodes"] == "2"
    codes, text = runs.link(config, tmp_path / "alone", *BY_NUMBER_OF_RANKS)
    assert codes == [ExitCode.DONE], text
    assert runs.samples(run) == runs.samples(tmp_path / "alone" / "tiny")
    assert runs.losses(run) == pytest.approx(runs.losses(tmp_path / "alone" / "tiny"), rel=5e-6)


def test_ranks_of_a_tp_group_read_the_same_and_dp_ranks_other_examples(slurm: Slurm, config: Path) -> None:
    """In both orders, with each tp group spread over two nodes."""
    if not slurm.cluster.isolation:
        lacking("the nodes have no host names of their own")
    folder, num_steps = config.parent, 4
    write_shar(folder / "train.jsonl", folder / ORDERS["randomized"], shard_size=4)
    program = f"tests.slurm.reading_ranks {shlex.quote(str(folder))} {num_steps}"
    slurm.launch(slurm.sub(program=program, nodes=2, tasks=2, more="#SBATCH --distribution=cyclic\n"))
    slurm.wait_until_over()
    assert (slurm.runs / "fake" / DONE).exists(), slurm.story("fake")
    ranks = [read_json(folder / f"rank_{rank}.json") for rank in range(4)]
    assert [(rank["dp_rank"], rank["tp_rank"]) for rank in ranks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [len({rank["node"] for rank in ranks[first : first + 2]}) for first in (0, 2)] == [2, 2]
    for order in ORDERS:
        one, same, other, same_as_other = (rank[order] for rank in ranks)
        assert one == same and other == same_as_other
        seen, seen_by_other = ({one for step in steps for batch in step for one in batch} for steps in (one, other))
        assert seen and seen_by_other and seen.isdisjoint(seen_by_other)
    alone = read_ids(folder, "exact", num_steps, ranks=Ranks(0, 0, 1, 0, 1, 0, 1, torch.device("cpu")))
    assert [a + b for a, b in zip(ranks[0]["exact"], ranks[2]["exact"], strict=True)] == alone


def test_a_bare_sbatch_of_a_recipes_own_file(slurm: Slurm, config: Path) -> None:
    sub = ROOT / "recipes/lmu_gigaspeech/job.sub"
    log = slurm.folder / "bare.log"
    words = ["--wait", f"--output={log}", str(sub), "--config", str(config), "run.name=bare", "train.max_steps=2"]
    slurm.ask("sbatch", *words)
    assert (slurm.runs / "bare" / DONE).exists(), log.read_text()
    (link,) = slurm.links("bare")
    assert (link.number, link.exit_code, link.step) == (1, 0, 2)
    assert link.job_id and link.job_id.isdigit()


def test_a_second_writer_is_refused_and_told_of_the_first(slurm: Slurm, config: Path, pace: Path) -> None:
    slurm.launch(sub := paced(slurm, config, pace), "train.max_steps=6")
    first = slurm.wait_for_starts(1, "tiny")
    pace.write_text(HALT)
    log = slurm.folder / "second.log"
    second = subprocess.run(["sbatch", "--wait", f"--output={log}", str(sub), "run.name=tiny"], cwd=ROOT, timeout=120)
    assert second.returncode == ExitCode.LEASE
    assert f"in use by job {first['job_id']} on {first['host']}" in log.read_text()
    pace.write_text(QUICK)
    slurm.wait_until_over("tiny")
    assert [link.exit_code for link in slurm.links("tiny")] == [ExitCode.DONE]


def test_the_deadline_is_kept_where_no_signal_comes(slurm: Slurm, config: Path, pace: Path) -> None:
    """The limit is changed after the start, and only the script would get a signal: rank 0 asks SLURM."""
    pace.write_text(SLOW)
    sub = paced(slurm, config, pace)
    sub.write_text(sub.read_text().replace("--signal=USR1@60", "--signal=B:USR1@60"))
    slurm.launch(sub, "train.max_steps=100", "stop.margin_s=110")
    job = slurm.links("tiny")[0].job_id or ""
    slurm.wait_for(lambda: slurm.state(job) == "RUNNING", "the job", run="tiny")
    slurm.shorten(job, 120)
    slurm.wait_until_over("tiny")
    (link,) = slurm.links("tiny")
    assert (link.exit_code, slurm.state(job)) == (ExitCode.CONTINUE, "FAILED"), "it left by itself"
    assert "time limit in" in link.outcome


def test_what_a_cut_off_node_writes_counts_for_nothing(slurm: Slurm, config: Path, pace: Path, tmp_path: Path) -> None:
    if slurm.cluster.network is None:
        lacking("the nodes have no network of their own to cut")
    settings = ("train.max_steps=12", "checkpoint.every_steps=4")
    slurm.launch(paced(slurm, config, pace), *settings)
    wait_for_step(slurm, 5)
    pace.write_text(HALT)
    old = slurm.wait_for_starts(1, "tiny")
    slurm.cluster.cut(old["host"])
    slurm.ask("scontrol", "update", f"nodename={old['host']}", "state=down", "reason=test")
    slurm.skip_hold(slurm.links("tiny")[0].job_id or "")
    new = slurm.wait_for_starts(2, "tiny")
    assert new["host"] != old["host"] and new["token"] > old["token"]

    run = slurm.runs / "tiny"
    slurm.wait_for(
        lambda: any(r["token"] == new["token"] for r in read_records(run / METRICS)), "the new link to write"
    )
    pace.write_text(QUICK)
    slurm.wait_until_over("tiny")
    tokens = [record["token"] for record in read_records(run / METRICS)]
    assert old["token"] in tokens[tokens.index(new["token"]) :], "the old rank wrote on"

    def ends() -> dict[int, int]:
        return {record["token"]: record["exit_code"] for record in slurm.events("ended", "tiny") if "token" in record}

    slurm.wait_for(lambda: old["token"] in ends(), "the end of the old rank", run="tiny")
    assert ends() == {old["token"]: ExitCode.LEASE, new["token"]: ExitCode.DONE}
    assert (run / DONE).exists()
    saved = {path.name: read_json(path / COMPLETE)["token"] for path in (run / CHECKPOINTS).glob("step_*")}
    assert saved["step_00000012"] == new["token"], saved
    assert slurm.links("tiny")[0].exit_code == ExitCode.DONE
    codes, text = runs.link(config, tmp_path / "uncut", *settings)
    assert codes == [ExitCode.DONE], text
    assert_same_run(run, tmp_path / "uncut" / "tiny")
