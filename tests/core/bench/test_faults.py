"""A suite whose runs hang, crash or are killed, or that is killed itself: nothing is done twice, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from core.bench.manifest import COLUMNS, MANIFEST, SKIPPED, Row, latest_rows, read_rows, read_table
from core.bench.summary import summarize
from core.rundir.files import METRICS
from core.rundir.processes import session_members
from core.rundir.whole_files import read_json, read_records

ROOT = Path(__file__).resolve().parents[3]
GOOD = {"overrides": ["stub.step_s=0.01"]}


class Bench:
    """A suite over the stub program, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.suite = folder, folder / "runs" / "suite"
        self.settings = {
            "name": "suite",
            "recipe": "tests.core.bench.stub",
            "config": str(folder / "recipe.yaml"),
            "max_steps": 6,
            "repeats": 1,
            "launch": {"cluster": "local", "master_port_base": 29650 + os.getpid() % 1000},
            "numerics": {"precision": None, "attention": None},
            "telemetry": {"host_every_s": 0.2},
            "watch": {"stop_grace_s": 0.5, "heartbeat_every_s": 0.3, "failure_dump_tail": 5},
            "ab": {"old_like": GOOD, "tuned": GOOD},
        }
        (folder / "recipe.yaml").write_text("optim: {schedule: {total_steps: 5, warmup_steps: 1}}\n")

    def begin(self, *words: str, verb: str = "ab") -> "subprocess.Popen[str]":
        (self.folder / "bench.yaml").write_text(json.dumps(self.settings))
        command = [sys.executable, "-m", "recipes.csa_stage1.bench", verb, "--config", str(self.folder / "bench.yaml")]
        return subprocess.Popen(
            [*command, *words],
            cwd=ROOT,
            env=os.environ | {"BATON_RUNS": str(self.folder / "runs"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, *words: str, code: int = 0, verb: str = "ab") -> str:
        bench = self.begin(*words, verb=verb)
        said = bench.communicate(timeout=240)[0]
        assert bench.returncode == code, said
        return said

    def rows(self) -> dict[str, Row]:
        return {row["group"]: row for row in latest_rows(self.suite)}

    def attempts(self) -> Counter[str]:
        """How often each run was begun."""
        return Counter(path.parent.name for path in self.suite.glob("runs/*/attempt_*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def until(condition: Callable[[], object], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not come to pass"
        time.sleep(0.02)


def leader(attempt: Path) -> int:
    return int(read_json(attempt / "attempt.json")["pid"])


def test_finished_runs_are_not_repeated(bench: Bench) -> None:
    bench.run()
    before = {path: path.stat().st_mtime_ns for path in bench.suite.glob("runs/*/*/*")}
    said = bench.run()
    assert "finished before" in said
    assert {path: path.stat().st_mtime_ns for path in bench.suite.glob("runs/*/*/*")} == before
    assert len(read_rows(bench.suite)) == 2
    assert [row["status"] for row in read_rows(bench.suite)] == ["ok", "ok"]
    assert len(read_table(bench.suite / SKIPPED)) == 2
    bench.run("resume=false")
    assert set(bench.attempts().values()) == {2}, "unless asked to"


def test_both_is_one_suite(bench: Bench) -> None:
    bench.settings["sweep"] = {"micro_batch": [2, 8], "num_workers": [0, 1]}
    bench.run()
    bench.run(verb="both")
    assert set(bench.attempts().values()) == {1} and len(bench.attempts()) == 6
    rows = {row["group"]: row for row in read_table(bench.suite / "ranked_groups.csv")}
    assert set(rows) == {"old_like", "tuned", "mb2_w0", "mb2_w1", "mb8_w0", "mb8_w1"}
    assert {group: float(row["tail_samples_per_sec_mean"]) for group, row in rows.items()} == {
        "old_like": 800.0, "tuned": 800.0, "mb2_w0": 400.0, "mb2_w1": 400.0, "mb8_w0": 1600.0, "mb8_w1": 1600.0,
    }  # fmt: skip
    assert read_json(bench.suite / "summary.json")["best_group"] == "mb8_w0"
    assert (bench.suite / "best_overrides.txt").read_text() == "plan.max_cuts=8\nloader.num_workers=0\n"
    bench.run(verb="nothing", code=85)


def test_a_crash_a_kill_and_a_hang_are_failures_and_the_rest_is_done(bench: Bench) -> None:
    bench.settings["watch"] |= {"stall_timeout_s": 1.5}
    bench.settings["ab"] = {
        "crash": {"overrides": ["stub.crash_at=3"]},
        "kill": {"overrides": ["stub.signal_at=3"]},
        "hang": {"overrides": ["stub.hang_at=5", "stub.ignores_stop=1", "stub.child=1"]},
        "old_like": GOOD,
    }
    said = bench.run(code=1)
    rows = bench.rows()
    assert {group: (row["status"], row["exit_code"], row["last_step"]) for group, row in rows.items()} == {
        "crash": ("failed", "1", "2"),
        "kill": ("failed", "-9", "2"),
        "hang": ("stalled", "-9", "4"),
        "old_like": ("ok", "0", "6"),
    }
    assert "something broke" in said and "crashed (a bug)" in rows["crash"]["reason"]
    assert rows["hang"]["stall_alerts"] == "1" and "stall:" in said
    assert not session_members(leader(bench.suite / "runs/ab-hang-r1/attempt_1")), "nothing of it is left"
    content = read_json(bench.suite / "summary.json")
    assert content["is_partial"] and content["ranking"] == ["old_like"]
    assert content["runs_by_status"] == {"failed": 2, "stalled": 1, "ok": 1}

    finished = {path: path.stat().st_mtime_ns for path in bench.suite.glob("runs/ab-old_like-r1/*/*")}
    bench.run(code=1)
    assert bench.attempts() == {"ab-crash-r1": 2, "ab-kill-r1": 2, "ab-hang-r1": 2, "ab-old_like-r1": 1}
    assert {path: path.stat().st_mtime_ns for path in bench.suite.glob("runs/ab-old_like-r1/*/*")} == finished
    assert len(read_rows(bench.suite)) == 7
    records = list(read_records(bench.suite / "runs/ab-crash-r1/attempt_2" / METRICS))
    assert [record["step"] for record in records if record["phase"] == "train"] == [1, 2], "of this attempt alone"


def test_time_limits(bench: Bench) -> None:
    bench.settings["watch"] |= {"run_timeout_s": 4.0, "max_wait_first_record_s": 2.0}
    bench.settings["ab"] = {
        "silent": {"overrides": ["stub.hang_at=1"]},
        "endless": {"overrides": ["stub.hang_at=4"]},
    }
    bench.run(code=1)
    assert {group: row["status"] for group, row in bench.rows().items()} == {"silent": "stalled", "endless": "timeout"}
    assert "run_timeout_s=4" in bench.rows()["endless"]["reason"]


def test_stop_on_error_leaves_the_rest_out_until_the_next_time(bench: Bench) -> None:
    bench.settings |= {"ab": {"bad": {"overrides": ["stub.crash_at=1"]}, "old_like": GOOD}, "stop_on_error": True}
    bench.run(code=1)
    assert bench.attempts() == {"ab-bad-r1": 1}
    (skipped,) = read_table(bench.suite / SKIPPED)
    assert skipped["group"] == "old_like" and "ab-bad-r1 failed" in skipped["reason"]
    bench.settings["stop_on_error"] = False
    bench.run(code=1)
    assert bench.attempts() == {"ab-bad-r1": 2, "ab-old_like-r1": 1}


def test_ctrl_c_ends_the_run_and_writes_what_there_is(bench: Bench) -> None:
    bench.settings["repeats"] = 2
    bench.settings["ab"] = {"old_like": GOOD, "slow": {"overrides": ["stub.hang_at=4"]}}
    process = bench.begin()
    until(lambda: (bench.suite / "runs/ab-slow-r1/attempt_1" / METRICS).exists())
    until(lambda: len(list(read_records(bench.suite / "runs/ab-slow-r1/attempt_1" / METRICS))) == 4)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    rows = bench.rows()
    assert (rows["old_like"]["status"], rows["slow"]["status"]) == ("ok", "interrupted")
    content = read_json(bench.suite / "summary.json")
    assert content["is_partial"] and content["runs_planned"] == 4 and content["best_group"] == "old_like"
    assert "**unfinished**" in (bench.suite / "summary.md").read_text()
    assert [s["reason"] for s in read_table(bench.suite / SKIPPED)] == ["interrupted before it began"] * 2

    (bench.folder / "bench.yaml").unlink()
    bench.settings["watch"] |= {"run_timeout_s": 3.0}
    bench.run(code=1)
    assert bench.attempts() == {"ab-old_like-r1": 1, "ab-slow-r1": 2, "ab-old_like-r2": 1, "ab-slow-r2": 1}


def test_a_bench_that_is_killed_leaves_nothing_behind_when_it_starts_again(bench: Bench) -> None:
    wait = bench.folder / "wait"
    wait.touch()
    process = bench.begin()
    attempt = bench.suite / "runs/ab-old_like-r1/attempt_1"
    until(lambda: (attempt / METRICS).exists() and (attempt / "attempt.json").exists())
    process.kill()
    process.communicate()
    orphan = leader(attempt)
    assert session_members(orphan) == [orphan], "it trains on"
    again = bench.begin()
    until(lambda: not session_members(orphan))
    wait.unlink()
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0 and "was left behind" in said
    rows = read_rows(bench.suite)
    assert [(row["group"], row["attempt"], row["status"]) for row in rows] == [
        ("old_like", "1", "lost"),
        ("old_like", "2", "ok"),
        ("tuned", "1", "ok"),
    ]


def test_a_run_that_finished_while_nobody_watched_counts(bench: Bench) -> None:
    wait = bench.folder / "wait"
    wait.touch()
    process = bench.begin()
    attempt = bench.suite / "runs/ab-old_like-r1/attempt_1"
    until(lambda: (attempt / METRICS).exists() and (attempt / "attempt.json").exists())
    process.kill()
    process.communicate()
    wait.unlink()
    until(lambda: not psutil.pid_exists(leader(attempt)) or not session_members(leader(attempt)))
    bench.run()
    assert bench.attempts() == {"ab-old_like-r1": 1, "ab-tuned-r1": 1}
    assert (bench.rows()["old_like"]["status"], bench.rows()["old_like"]["last_step"]) == ("ok", "6")


def test_two_at_once_do_not_share_a_run(bench: Bench) -> None:
    (bench.folder / "wait").touch()
    one = bench.begin()
    until(lambda: (bench.suite / "runs/ab-old_like-r1/attempt_1" / METRICS).exists())
    other = bench.begin()
    until(lambda: (bench.suite / "runs/ab-tuned-r1/attempt_1" / METRICS).exists())
    (bench.folder / "wait").unlink()
    said = [process.communicate(timeout=120)[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), said
    assert "another bench is at work on it" in said[1]
    assert bench.attempts() == {"ab-old_like-r1": 1, "ab-tuned-r1": 1} and len(read_rows(bench.suite)) == 2


def test_a_manifest_that_cannot_be_written_loses_no_row(bench: Bench) -> None:
    (bench.suite / MANIFEST).mkdir(parents=True)  # a directory is in its place
    bench.settings["manifest_write_retries"] = 0
    said = bench.run()
    assert "the row is kept in" in said
    assert {row["status"] for row in read_rows(bench.suite)} == {"ok"}, "read from where they are"
    (bench.suite / MANIFEST).rmdir()
    summarize(bench.suite)
    table = read_table(bench.suite / MANIFEST)
    assert [row["group"] for row in table] == ["old_like", "tuned"]
    assert not list(bench.suite.glob("runs/*/*/*.fallback.tsv"))
    bench.run()
    assert set(bench.attempts().values()) == {1}


def test_a_manifest_with_another_header_is_kept_and_carried_over(bench: Bench) -> None:
    bench.run()
    path = bench.suite / MANIFEST
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("\n".join("\t".join(cells[:9]) for cells in lines) + "\nab\told_l")  # of older code, and torn
    older = path.read_text()
    bench.run()
    assert (bench.suite / f"{MANIFEST}.bak.1").read_text() == older
    assert path.read_text().splitlines()[0].split("\t") == list(COLUMNS)
    assert set(bench.attempts().values()) == {1}


def test_another_suite_of_the_same_name_is_refused(bench: Bench) -> None:
    bench.run()
    bench.settings["watch"] |= {"heartbeat_every_s": 1.0}
    bench.run()
    bench.settings["max_steps"] = 7
    said = bench.run(code=85)
    assert "max_steps: 6 -> 7" in said and "name=" in said
    assert bench.attempts() == {"ab-old_like-r1": 1, "ab-tuned-r1": 1}


def test_a_slow_spell_is_an_alert(bench: Bench) -> None:
    bench.settings["ab"]["tuned"] = {"overrides": ["stub.slow_from=5"]}
    said = bench.run()
    assert (bench.rows()["old_like"]["spike_alerts"], bench.rows()["tuned"]["spike_alerts"]) == ("0", "2")
    assert "spike: 0.1 s an iteration at step 5" in said
