"""The command line: quick, readable, and clear when something is wrong."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from core.rundir.files import LEASE
from core.rundir.whole_files import write_json
from tests.launchers.conftest import Launcher, launcher_command

FORBIDDEN = ("torch", "numpy", "lhotse", "pydantic", "transformers", "submitit")


def make_run(run: Path, *records: dict[str, object]) -> None:
    run.mkdir(parents=True)
    (run / "chain.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def two_links(run: Path) -> None:
    minute = "2026-01-01T00:0{}:00Z"
    submitted = {"event": "submitted", "cluster": "local", "argv": ["x.sub", "run.name=a"], "log": "logs/1.out"}
    make_run(
        run,
        {**submitted, "link": 1, "time": minute.format(0), "job_id": "11", "seed": 5},
        {"event": "started", "link": 1, "time": minute.format(0), "host": "node1", "pid": 1, "step": 0, "token": 1},
        {
            "event": "ended",
            "link": 1,
            "time": minute.format(4),
            "exit_code": 75,
            "step": 50,
            "train_s": 120,
            "token": 1,
        },
        {**submitted, "link": 2, "time": minute.format(5), "job_id": "12", "seed": 6},
        {"event": "started", "link": 2, "time": minute.format(5), "host": "node2", "pid": 1, "step": 50, "token": 2},
        {"event": "ended", "link": 1, "time": minute.format(9), "exit_code": 1, "step": 99, "token": 0},
        {
            "event": "ended",
            "link": 2,
            "time": minute.format(9),
            "exit_code": 88,
            "reason": "loss is NaN",
            "step": 70,
            "token": 2,
        },
    )
    with (run / "metrics.jsonl").open("w") as file:
        file.write('{"phase": "train", "step": 60, "loss": 3.5, "eta_s": 90}\n')
        file.write('{"phase": "valid", "step": 65, "valid_wer": 1}\n{"st')  # killed in the middle of a line


@pytest.mark.parametrize("words", [["--help"], ["status"], ["status", "a"], ["status", "--json"], ["logs", "a"]])
def test_commands_import_nothing_heavy(runs: Path, words: list[str]) -> None:
    two_links(runs / "a")
    (runs / "a" / "logs").mkdir()
    (runs / "a" / "logs" / "1.out").write_text("hello\n")
    program = (
        "import sys; from launchers.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print('HEAVY', [name for name in {FORBIDDEN} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert "HEAVY []" in output.stdout, output.stdout + output.stderr


@pytest.mark.parametrize("words", [["--help"], ["status"]])
def test_commands_take_less_than_a_quarter_of_a_cpu_second(runs: Path, words: list[str]) -> None:
    two_links(runs / "a")
    seconds = []
    for _ in range(3):  # the least of three: other work on the machine only adds
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(launcher_command(*words), capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.25


def test_status_of_all_runs_and_of_one(launcher: Launcher, runs: Path) -> None:
    two_links(runs / "a")
    make_run(runs / "b")
    (runs / "b" / "DONE").touch()
    (runs / "no-run").mkdir()
    everything = launcher("status")
    assert everything.returncode == 0
    heading, _, *rows = [line.split() for line in everything.stdout.splitlines()]
    assert heading == ["run", "state", "step", "loss", "links", "ETA"]
    assert rows == [["a", "failed", "65", "3.5", "2"], ["b", "done", "0", "0"]]
    assert "no-run" not in everything.stdout
    assert "3.5" in everything.stdout

    one = launcher("status", "a").stdout
    for words in ("failed at step 65", "loss is NaN", "training diverged", "node2", "50 - 70", "4 min 00 s", "25%"):
        assert words in one
    assert "99" not in one, "an older holder of the lease said so: it does not count"
    assert "\x1b[" not in one, "color only on a terminal"
    table = [line for line in one.splitlines()[1:] if "/" not in line]
    assert max(map(len, table)) <= 80


def test_status_for_programs(launcher: Launcher, runs: Path) -> None:
    two_links(runs / "a")
    one = json.loads(launcher("status", "a", "--json").stdout)
    assert (one["state"], one["step"], one["loss"], one["resume_step"]) == ("failed", 65, 3.5, 50)
    assert [link["exit_code"] for link in one["link_table"]] == [75, 88]
    assert one["train_s"] == 120
    assert one["time_s"] == 480
    (only,) = json.loads(launcher("status", "--json").stdout)
    assert only == one


def test_states(launcher: Launcher, runs: Path) -> None:
    started = {"event": "started", "link": 1, "time": "2026-01-01T00:00:00Z", "host": "elsewhere", "pid": 1, "step": 0}
    make_run(runs / "lost", started)
    make_run(runs / "paused", started, {**started, "event": "ended", "exit_code": 75, "step": 3})
    make_run(runs / "running", started)
    me = psutil.Process()
    lease = {"host": os.uname().nodename, "pid": me.pid, "started": me.create_time(), "token": 1, "job_id": "x"}
    write_json(runs / "running" / LEASE, {**lease, "heartbeat": 1.0})
    make_run(runs / "dead", started)
    write_json(runs / "dead" / LEASE, {**lease, "heartbeat": 1.0, "pid": 2**22 + 1})
    make_run(runs / "reused", started)  # a day ago the number was another process's
    write_json(runs / "reused" / LEASE, {**lease, "heartbeat": time.time(), "started": me.create_time() - 86400})
    states = {row["run"]: row["state"] for row in json.loads(launcher("status", "--json").stdout)}
    is_alive = {"running": "running", "dead": "interrupted", "reused": "interrupted"}
    assert states == {"lost": "interrupted", "paused": "paused", **is_alive}


@pytest.mark.parametrize(
    "words, says",
    [
        (["stauts"], "did you mean status?"),
        (["nothing.sub"], "no such file: nothing.sub"),
        (["train.py"], "neither a command nor a .sub or pipeline .yaml file"),
        (["status", "lmu_dmeo"], "did you mean lmu_demo?"),
        (["logs", "lmu"], "did you mean lmu_demo?"),
        (["cancel", "../x"], "only letters, digits"),
        (["extend", "lmu_demo", "-n", "1"], "not launched by ./launch.sh"),
        (["logs", "lmu_demo", "--link", "4"], "no log of link 4"),
    ],
)
def test_errors_say_what_to_do(launcher: Launcher, runs: Path, words: list[str], says: str) -> None:
    make_run(runs / "lmu_demo")
    answer = launcher(*words)
    assert answer.returncode == 85
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr


def test_logs_of_the_newest_and_of_an_earlier_link(launcher: Launcher, runs: Path, sub: Path) -> None:
    launcher("-n2", sub)
    assert "step 10" in launcher("logs", "fake").stdout
    first = launcher("logs", "fake", "--link", "1").stdout
    assert "step 5" in first
    assert "step 6" not in first
    followed = launcher("logs", "fake", "-f").stdout
    assert "step 10" in followed
