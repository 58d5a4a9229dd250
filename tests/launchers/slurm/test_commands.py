"""SLURM's commands when they fail, hang, or lose their answer."""

import time
from pathlib import Path

import pytest

from launchers.slurm import commands as slurm_commands
from launchers.slurm.commands import SlurmError, ask, cancel_jobs, own_environment, submit
from tests.launchers.conftest import FakeCluster


def test_what_may_pass_is_asked_again(cluster: FakeCluster) -> None:
    cluster.answers(
        "squeue",
        '[ "$(wc -l < "$0.log")" -ge 3 ] && echo fine && exit\n'
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    )
    assert ask(["squeue", "--me"]) == "fine\n"
    assert cluster.calls("squeue") == ["--me"] * 3


def test_a_refusal_is_final_and_in_slurms_own_words(cluster: FakeCluster) -> None:
    cluster.answers(
        "scancel", "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2; exit 1"
    )
    assert cancel_jobs(["7"]) == "scancel: error: Kill job error on job id 7: Access/permission denied"
    assert len(cluster.calls("scancel")) == 1
    assert cancel_jobs([]) is None
    with pytest.raises(SlurmError, match="no-such-command is not installed here"):
        ask(["no-such-command"])


def test_a_command_that_hangs_costs_a_bounded_time(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_commands, "TIMEOUT_S", 0.5)
    cluster.answers("scontrol", "exec sleep 60")
    began = time.monotonic()
    with pytest.raises(SlurmError, match=r"did not answer in 0\.5 s") as caught:
        ask(["scontrol", "show", "job", "1"], attempts=2)
    assert caught.value.is_unclear
    assert time.monotonic() - began < 20
    assert len(cluster.calls("scontrol")) == 2


def test_a_submission_whose_answer_was_lost_is_found_not_repeated(cluster: FakeCluster, tmp_path: Path) -> None:
    script = tmp_path / "a folder" / "submission_file_ab12.sh"
    cluster.answers("sbatch", "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1")
    cluster.answers("squeue", f"echo '41 /elsewhere.sh'; echo '42 {script}'")
    assert submit(script) == "42"
    assert cluster.calls("sbatch") == [str(script)]
    assert cluster.calls("squeue") == ["--noheader --me --states=all --format=%A %o"], "also what is over already"


def test_a_submission_of_which_nothing_can_be_learned_is_not_repeated(cluster: FakeCluster, tmp_path: Path) -> None:
    for command in ("sbatch", "squeue"):
        cluster.answers(command, f"echo '{command}: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmError) as refused:
        submit(tmp_path / "submission_file_ab12.sh")
    assert len(cluster.calls("sbatch")) == 1, "the link may be queued: once more would queue it twice"
    for words in ("sbatch: error", "squeue: error", f"{tmp_path}/submission_file_ab12.sh may be queued"):
        assert words in str(refused.value)
    assert refused.value.is_unclear


def test_a_submission_that_did_not_arrive_is_tried_again(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.answers(
        "sbatch",
        '[ "$(wc -l < "$0.log")" -ge 3 ] && echo "Submitted batch job 77 on cluster a" && exit\n'
        "echo 'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying' >&2; exit 1",
    )
    assert submit(tmp_path / "x.sh") == "77"
    cluster.answers("sbatch", "echo Hello")
    with pytest.raises(SlurmError, match=r"answered 'Hello', without the number of a job"):
        submit(tmp_path / "x.sh")


def test_nothing_of_an_enclosing_job_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ["SLURM_JOB_ID", "SLURM_NTASKS", "PMIX_RANK", "PMI_FD", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"]
    foreign += ["BATON_LINK", "BATON_LINK_SEED", "BATON_LOCAL_TASKS"]
    ours = ["SLURM_CONF", "SBATCH_ACCOUNT", "RANKING", "BATON_RUNS"]
    for name in foreign + ours:
        monkeypatch.setenv(name, "1")
    kept = own_environment()
    assert [name for name in foreign if name in kept] == []
    assert [name for name in ours if name not in kept] == []
