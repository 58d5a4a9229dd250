"""What a job does before and after its .sub file, with the job as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.runfiles import DONE, FAILED, STOP
from launchers.ledger import read_links
from tests.launchers.conftest import FakeCluster, write_ledger


def submitted(link: int, job: int, *, first: int = 1) -> dict[str, object]:
    return {"event": "submitted", "link": link, "job_id": str(job), "first_link": first}


FOUR = [submitted(1, 11), submitted(2, 12), submitted(3, 13), submitted(4, 14)]


def work(link: int, script: str, *, runs: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Link `link` of the run `run`, whose .sub file does what the script says."""
    command = [sys.executable, "-P", "-m", "launchers.slurm_link", "run", "bash", "-c", script]
    env = {**os.environ, "BATON_LINK": str(link), "BATON_RUNS": str(runs), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "marker, code, says",
    [(DONE, 0, "is done"), (STOP, 75, "was cancelled by me"), (FAILED, 75, "the chain stops: cancelled by me")],
)
def test_a_link_with_nothing_to_do_cancels_the_rest(
    cluster: FakeCluster, runs: Path, marker: str, code: int, says: str
) -> None:
    run = write_ledger(runs / "run", *FOUR)
    (run / marker).write_text("cancelled by me\n")
    answer = work(2, "echo trains", runs=runs)
    assert answer.returncode == code
    assert says in answer.stdout
    assert "trains" not in answer.stdout
    assert cluster.calls("scancel") == ["--quiet --state=PENDING 13 14"]


def test_a_run_that_is_done_takes_its_later_links_out_of_the_queue(cluster: FakeCluster, runs: Path) -> None:
    run = write_ledger(runs / "run", *FOUR)
    answer = work(1, f"echo trains; touch '{run}/DONE'", runs=runs)
    assert (answer.returncode, answer.stdout.splitlines()[0]) == (0, "trains")
    assert cluster.calls("scancel") == ["--quiet --state=PENDING 12 13 14"]


def test_a_file_without_a_recipe_is_done_when_it_ends_well(cluster: FakeCluster, runs: Path) -> None:
    run = write_ledger(runs / "run", *FOUR)
    assert work(1, "exit 3", runs=runs).returncode == 3
    assert not (run / DONE).exists()
    assert work(2, "echo prepared", runs=runs).returncode == 0
    assert (run / DONE).exists()
    assert cluster.calls("scancel") == ["--quiet --state=PENDING 13 14"]


def test_a_run_that_goes_on_leaves_them_there(cluster: FakeCluster, runs: Path) -> None:
    write_ledger(runs / "run", *FOUR)
    assert work(1, "exit 75", runs=runs).returncode == 75
    assert cluster.calls("scancel") == []


def test_a_death_without_a_word_is_written_down_and_the_second_stops_the_chain(
    cluster: FakeCluster, runs: Path
) -> None:
    run = write_ledger(runs / "run", *FOUR)
    assert work(1, "kill -9 $$", runs=runs).returncode == 137
    assert not (run / FAILED).exists()
    assert work(2, "kill -9 $$", runs=runs).returncode == 137
    assert [link.outcome for link in read_links(run)[:2]] == ["killed by signal 9"] * 2
    assert (run / FAILED).read_text() == "links 1 and 2 made no new step; link 2: killed by signal 9\n"
    assert cluster.calls("scancel") == ["--quiet --state=PENDING 13 14"]


def test_where_a_job_may_not_cancel_it_says_so_and_the_rest_ends_by_itself(cluster: FakeCluster, runs: Path) -> None:
    run = write_ledger(runs / "run", *FOUR)
    (run / DONE).touch()
    cluster.answers("scancel", "echo 'scancel: error: not allowed on compute nodes' >&2; exit 1")
    answer = work(2, "echo trains", runs=runs)
    assert answer.returncode == 0
    assert "not allowed on compute nodes" in answer.stdout
    assert work(3, "echo trains", runs=runs).stdout.count("trains") == 0


@pytest.mark.parametrize(
    "state, code, words",
    [
        ("TIMEOUT", None, "the time limit came before it could save"),
        ("NODE_FAIL", 90, "the node failed: SLURM lost its node"),
        ("PREEMPTED", None, "preempted before it could save"),
        ("OUT_OF_MEMORY", 91, "out of memory: SLURM killed it for its memory"),
        ("FAILED", 9, "exit code 9"),
    ],
)
def test_how_the_link_before_was_killed_is_asked_of_slurm(
    cluster: FakeCluster, runs: Path, state: str, code: int | None, words: str
) -> None:
    run = write_ledger(runs / "run", *FOUR, {"event": "started", "link": 1, "step": 0})
    cluster.answers("scontrol", f"echo 'JobId=11 JobName=run JobState={state} Reason=None ExitCode=9:0'")
    work(2, "exit 75", runs=runs)
    before = read_links(run)[0]
    assert (before.exit_code, before.outcome) == (code, words)
    assert cluster.calls("scontrol") == ["show job --oneliner 11"]


def test_without_an_answer_of_slurm_it_still_trains(cluster: FakeCluster, runs: Path) -> None:
    run = write_ledger(runs / "run", *FOUR, {"event": "started", "link": 1, "step": 0})
    cluster.answers("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert "trains" in work(2, "echo trains; exit 75", runs=runs).stdout
    assert read_links(run)[0].outcome == "ended without a word"


def test_a_start_after_a_requeue_ends_the_one_before(cluster: FakeCluster, runs: Path) -> None:
    run = write_ledger(runs / "run", *FOUR, {"event": "started", "link": 1, "step": 0})
    work(1, f"test -s '{run}/chain.jsonl' && exit 75", runs=runs, SLURM_RESTART_COUNT="1")
    reasons = [line for line in (run / "chain.jsonl").read_text().splitlines() if "REQUEUED" in line]
    assert len(reasons) == 1


def test_a_stage_waits_for_the_one_before_to_be_done(cluster: FakeCluster, runs: Path) -> None:
    run = write_ledger(runs / "run", *FOUR)
    (runs / "earlier").mkdir()
    closed = work(1, "echo trains", runs=runs, BATON_GATE="earlier")
    assert closed.returncode == 75
    assert "run earlier, is not done" in closed.stdout
    assert cluster.calls("scancel") == ["--quiet --state=PENDING 12 13 14"]
    assert not read_links(run)[0].has_run
    assert not (run / FAILED).exists(), "the same command goes on when the stage before is done"
    (runs / "earlier" / DONE).touch()
    assert "trains" in work(2, "echo trains; exit 75", runs=runs, BATON_GATE="earlier").stdout


def test_signals_are_for_the_ranks(cluster: FakeCluster, runs: Path) -> None:
    write_ledger(runs / "run", *FOUR)
    script = "trap 'exit 75' TERM; echo ready; while :; do sleep 0.1; done"
    command = [sys.executable, "-P", "-m", "launchers.slurm_link", "run", "bash", "-c", script]
    env = {**os.environ, "BATON_LINK": "1"}
    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        job.send_signal(number)  # to the job's first process alone: it goes on waiting
    time.sleep(0.3)
    assert job.poll() is None
    os.killpg(job.pid, signal.SIGTERM)
    job.communicate(timeout=300)
    assert job.returncode == 75
