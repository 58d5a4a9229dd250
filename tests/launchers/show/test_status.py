"""`status`: from run files alone, with one call of squeue at most, in words, and quick."""

import json
import os
import resource
import shlex
import subprocess
from pathlib import Path

import pytest

from core.rundir.ledger import attempts_of, read_events
from launchers.show.run_facts import facts_of, training_time_ratio
from tests.launchers.conftest import FakeCluster, Launcher, launcher_command, write_ledger


def chain(run: Path, first_job: int) -> Path:
    """Link 1 has ended, link 2 is at work, links 3 and 4 wait."""
    return write_ledger(
        run,
        *({"event": "submitted", "link": k, "job_id": str(first_job + k)} for k in (1, 2, 3, 4)),
        {"event": "started", "link": 1, "step": 0},
        {"event": "ended", "link": 1, "exit_code": 75, "reason": "signal USR1", "step": 50, "token": 1},
        {"event": "started", "link": 2, "step": 50},
    )


def outcomes(run: Path) -> list[str]:
    return [link["outcome"] for link in facts_of([run])[0]["link_table"]]


def test_the_queue_in_words_by_one_call(cluster: FakeCluster, runs: Path) -> None:
    cluster.answers(
        "squeue",
        "echo '2|RUNNING|n3|2026-01-01T00:01:00|None'\n"
        "echo '3|PENDING||N/A|Dependency'\n"
        "echo '4|PENDING||2026-01-02T10:30:00|QOSMaxJobsPerUserLimit'\n"
        "echo '102|NODE_FAIL|n3|N/A|None'\n"
        "echo '999|RUNNING|n1|N/A|None'",
    )
    one, other = facts_of([chain(runs / "one", 0), chain(runs / "other", 100)])
    assert len(cluster.calls("squeue")) == 1
    assert [link["outcome"] for link in one["link_table"]] == [
        "stopped as planned, to be continued: signal USR1",
        "running",
        "waits for the link before",
        "queued: QOSMaxJobsPerUserLimit, expected 2026-01-02 10:30",
    ]
    assert other["link_table"][1]["outcome"] == "SLURM lost its node"
    assert one["state"] == "starting"
    assert other["state"] == "interrupted"


@pytest.mark.parametrize(
    "squeue", ["exec sleep 60", "echo 'slurm_load_jobs error: no controller' >&2; exit 1", "echo x"]
)
def test_the_files_tell_where_slurm_is_silent(
    cluster: FakeCluster, runs: Path, monkeypatch: pytest.MonkeyPatch, squeue: str
) -> None:
    monkeypatch.setattr("launchers.slurm.queue.TIMEOUT_S", 0.5)
    cluster.answers("squeue", squeue)
    run = chain(runs / "one", 0)
    assert outcomes(run)[1:] == ["ended without a word: killed, or its node was lost", "not started", "not started"]
    assert len(cluster.calls("squeue")) == 1
    (run / "STOP").write_text("cancelled by me")
    assert outcomes(run)[2] == "cancelled before it began"
    (run / "DONE").touch()
    assert outcomes(run)[2] == "not needed: the run was done"


def test_squeue_is_not_asked_about_what_is_over(cluster: FakeCluster, launcher: Launcher, runs: Path) -> None:
    run = write_ledger(
        runs / "over",
        {"event": "submitted", "link": 1, "job_id": "1"},
        {"event": "started", "link": 1, "step": 0},
        {"event": "ended", "link": 1, "exit_code": 1, "reason": "KeyError: 'x'", "step": 3, "token": 1},
    )
    assert "link 1: crashed (a bug): KeyError: 'x'" in launcher("status", run.name).stdout
    assert cluster.calls("squeue") == []


def test_a_thousand_runs_cost_about_a_second(runs: Path) -> None:
    for number in range(1000):
        run = chain(runs / f"run_{number:04d}", 10 * number)
        record = {"phase": "train", "step": 60, "loss": 2.5, **{f"metric_{i}": 0.123456789 for i in range(16)}}
        (run / "metrics.jsonl").write_text((json.dumps(record) + "\n") * 40)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(launcher_command("status"), capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(answer.stdout.splitlines()) == 1002
    assert max(map(len, answer.stdout.splitlines())) <= 80
    assert "\x1b" not in answer.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_colors_on_a_terminal_only(runs: Path) -> None:
    chain(runs / "one", 0)
    for environment, is_colored in (({}, True), ({"NO_COLOR": "1"}, False)):
        command = ["script", "--quiet", "--return", "--command", shlex.join(launcher_command("status")), "/dev/null"]
        shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)
        assert ("\x1b[31minterrupted" in shown.stdout) == is_colored, shown.stdout


def test_the_share_of_time_that_went_into_steps_that_count(runs: Path) -> None:
    def ended(link: int, step: int | None, **facts: object) -> dict[str, object]:
        return {"event": "ended", "link": link, "exit_code": 75, "step": step, "token": link, **facts}

    run = write_ledger(
        runs / "one",
        {"event": "started", "link": 1, "step": 0},
        ended(1, 100, train_s=90.0, wall_s=100.0),
        {"event": "started", "link": 2, "step": 80},  # 20 of link 1's 100 steps are done again
        ended(2, 180, train_s=95.0, wall_s=100.0),
    )
    attempts = attempts_of(read_events(run))
    assert training_time_ratio(attempts) == pytest.approx((0.8 * 90 + 95) / 200)
    assert training_time_ratio(attempts[1:]) == pytest.approx(0.95)
    assert training_time_ratio([]) is None


def test_an_attempt_that_a_requeue_ended_is_not_forgotten(runs: Path) -> None:
    run = write_ledger(
        runs / "one",
        {"event": "submitted", "link": 1, "job_id": "1"},
        {"event": "started", "link": 1, "step": 0},  # at minute 1
        {"event": "ended", "link": 1, "exit_code": None, "slurm_state": "REQUEUED", "reason": "SLURM lost its node"},
        {"event": "started", "link": 1, "step": 0},
        {"event": "ended", "link": 1, "exit_code": 75, "step": 50, "token": 2, "train_s": 55.0, "wall_s": 60.0},
    )
    (row,) = facts_of([run])
    (link,) = row["link_table"]
    assert row["training_time_ratio"] == link["training_time_ratio"] == pytest.approx(55 / 120)
    assert row["time_s"] == link["time_s"] == 120
    assert link["outcome"] == "SLURM lost its node; then stopped as planned, to be continued"


@pytest.mark.parametrize(
    "state, marker, words, run_state",
    [
        ("NODE_FAIL", None, "died before it began to work: SLURM lost its node", "failed"),
        ("TIMEOUT", None, "died before it began to work: the time limit came before it could save", "failed"),
        ("FAILED", None, "died before it began to work: see its log", "failed"),
        ("FAILED", "STOP", "cancelled before it began", "cancelled"),  # it found the mark, and left with 75
        ("CANCELLED", None, "not started", "not started"),
    ],
)
def test_a_job_that_died_before_it_could_say_so(
    cluster: FakeCluster, runs: Path, state: str, marker: str | None, words: str, run_state: str
) -> None:
    run = write_ledger(runs / "one", {"event": "submitted", "link": 1, "job_id": "1"})
    if marker is not None:
        (run / marker).write_text("cancelled by me")
    cluster.answers("squeue", f"echo '1|{state}|n3|N/A|None'")
    (row,) = facts_of([run])
    assert (row["link_table"][0]["outcome"], row["state"]) == (words, run_state)


def test_what_a_fenced_writer_adds_does_not_count(runs: Path) -> None:
    """Link 1 saved step 50 and was cut off; link 2 went on from there, and link 1 still writes."""
    run = chain(runs / "one", 0)
    metrics = run / "metrics.jsonl"
    with metrics.open("w") as file:
        for token, step, loss in ((1, 50, 5.0), (1, 60, 4.0), (2, 55, 4.5)):
            file.write(json.dumps({"phase": "train", "step": step, "token": token, "loss": loss}) + "\n")
    (row,) = facts_of([run])
    assert (row["step"], row["loss"]) == (55, 4.5)
    with metrics.open("a") as file:
        for step in range(61, 400):  # more than the end that is read at first
            file.write(json.dumps({"phase": "train", "step": step, "token": 1, "loss": 9.0, "eta_s": 1}) + "\n")
    (row,) = facts_of([run])
    assert (row["step"], row["loss"], row["eta_s"]) == (55, 4.5, None)


def test_long_names_and_full_host_names_fit_into_80_columns(launcher: Launcher, runs: Path) -> None:
    names = [f"{'a_long_name_' * 5}-{number}" for number in (1, 2)]
    for name in names:
        end = {"exit_code": 75, "step": 2_000_000, "token": 1, "train_s": 1, "wall_s": 86399}
        write_ledger(
            runs / name,
            {"event": "submitted", "link": 1, "job_id": "12345678_12", "seed": 4294967295},
            {"event": "started", "link": 1, "step": 1_000_000, "host": "gpu-node-0123.cluster.institute.example.org"},
            {"event": "ended", "link": 1, **end},
        )
        (runs / name / "metrics.jsonl").write_text(json.dumps({"step": 2_000_000, "loss": 1.234}) + "\n")
    everything = launcher("status").stdout
    assert max(map(len, everything.splitlines())) <= 80
    assert "name_-1  paused  2,000,000" in everything and "name_-2  paused" in everything
    one = launcher("status", names[0]).stdout
    (table,) = [part for part in one.split("\n\n") if "seed" in part]
    assert max(map(len, table.splitlines())) <= 80
    assert "  gpu-..0123  " in table and "4294967295" in table and "1000000 - 2000000" in table
