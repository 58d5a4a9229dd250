"""What a job does before and after its .sub file, with the job as a process of its own."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.rundir.exit_codes import ExitCode
from core.rundir.files import DONE, FAILED, STOP
from core.rundir.ledger import attempts_of, read_events, read_links, record_link
from launchers.slurm import link as slurm_link
from tests.launchers.conftest import FakeCluster, write_ledger


def submitted(link: int, job: int, *, first: int = 1) -> dict[str, object]:
    return {"event": "submitted", "link": link, "job_id": str(job), "first_link": first}


FOUR = [submitted(1, 11), submitted(2, 12), submitted(3, 13), submitted(4, 14)]


def work(link: int, script: str, *, runs: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Link `link` of the run `run`, whose .sub file does what the script says."""
    command = [sys.executable, "-P", "-m", "launchers.slurm.link", "run", "bash", "-c", script]
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
    command = [sys.executable, "-P", "-m", "launchers.slurm.link", "run", "bash", "-c", script]
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


def test_a_refused_second_writer_leaves_the_first_ones_chain_alone(cluster: FakeCluster, runs: Path) -> None:
    run = write_ledger(
        runs / "run",
        *FOUR,
        {"event": "started", "link": 1, "step": 0},
        *(submitted(k, 10 + k, first=5) for k in (5, 6)),  # another launch
    )
    assert work(5, "exit 92", runs=runs).returncode == 92
    refused = read_links(run)[4]
    assert (refused.exit_code, refused.has_run, refused.outcome) == (92, False, "another job holds the run")
    assert not (run / FAILED).exists()
    assert cluster.calls("scancel") == []
    assert work(6, "exit 92", runs=runs).returncode == 92, "each tries, and the second stops nothing either"
    assert not (run / FAILED).exists()


def test_a_job_that_lost_the_run_stops_nothing(cluster: FakeCluster, runs: Path) -> None:
    """Link 1 was cut off, link 2 went on in its place, and only then link 1 notices."""
    run = write_ledger(runs / "run", *FOUR)
    start = "from core.rundir.ledger import record_link; from pathlib import Path; run = Path(sys.argv[1])"
    events = (
        "record_link(run, event='started', link=1, token=1, step=0, host='n1', pid=1)",
        "record_link(run, event='started', link=2, token=2, step=0, host='n2', pid=1)",
        "record_link(run, event='ended', link=1, token=1, step=9, exit_code=92, reason='taken over')",
    )
    script = f"'{sys.executable}' -c \"import sys; {start}; {'; '.join(events)}\" '{run}'; exit 92"
    assert work(1, script, runs=runs).returncode == 92
    assert [link.exit_code for link in read_links(run)[:2]] == [92, None]
    assert not (run / FAILED).exists()
    assert cluster.calls("scancel") == []


@pytest.mark.parametrize(
    "state, code, words",
    [
        ("OUT_OF_MEMORY", 91, "out of memory: SLURM killed it for its memory"),
        ("NODE_FAIL", 90, "the node failed: SLURM lost its node"),
        ("FAILED", -9, "killed by signal 9"),
        ("COMPLETED", -9, "killed by signal 9"),
    ],
)
def test_what_slurm_learned_later_about_a_kill(
    cluster: FakeCluster, runs: Path, state: str, code: int, words: str
) -> None:
    run = write_ledger(runs / "run", *FOUR)
    assert work(1, "kill -9 $$", runs=runs).returncode == 137
    assert read_links(run)[0].exit_code == -9
    cluster.answers("scontrol", f"echo 'JobId=11 JobName=run JobState={state} Reason=None ExitCode=0:9'")
    work(2, "exit 75", runs=runs)
    assert (read_links(run)[0].exit_code, read_links(run)[0].outcome) == (code, words)
    attempts = [attempt for attempt in attempts_of(read_events(run)) if attempt.link == 1]
    assert [attempt.ended["exit_code"] for attempt in attempts] == [code], "one attempt, whatever was said of it"


def test_a_full_disk_does_not_keep_the_rest_in_the_queue(
    cluster: FakeCluster, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = write_ledger(runs / "run", *FOUR)
    before = (run / "chain.jsonl").read_bytes()
    monkeypatch.setenv("BATON_LINK", "1")
    monkeypatch.setattr(slurm_link, "write_whole", fails)
    monkeypatch.setattr(slurm_link, "record_link", fails)
    monkeypatch.setattr(slurm_link, "FORWARDED", ())
    assert slurm_link.main(["run", "bash", "-c", "exit 87"]) == ExitCode.STORAGE
    assert cluster.calls("scancel") == ["--quiet --state=PENDING 12 13 14"]
    assert (run / "chain.jsonl").read_bytes() == before


@pytest.mark.parametrize("pieces, is_stopped", [((30, 42), False), ((30, 30), False), ((0, 0), True)])
def test_a_preparation_that_is_cut_goes_on_while_it_makes_pieces(
    cluster: FakeCluster, runs: Path, pieces: tuple[int, int], is_stopped: bool
) -> None:
    run = write_ledger(runs / "run", *FOUR)
    for link, made in enumerate(pieces, start=1):
        record_link(run, event="started", link=link, token=link, step=0, host="n1", pid=1)
        record_link(run, event="ended", link=link, token=link, step=made, exit_code=75, reason="signal USR1")
    answer = work(3, "echo prepares; exit 75", runs=runs)
    assert ("prepares" in answer.stdout) == (not is_stopped)
