"""Chains on this machine: the real launcher, submitit's real local executor, a stand-in for the recipe."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from core.rundir.files import DONE, FAILED, LEASE, STOP
from core.rundir.ledger import read_links
from core.rundir.processes import find_writer
from core.rundir.whole_files import read_records, write_json
from launchers.chain.submission import link_seed
from tests.launchers.conftest import Launcher, launcher_command, write_sub


def start(*words: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        launcher_command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(condition: object, *, what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def test_two_links_finish_a_run_and_a_third_launch_does_nothing(launcher: Launcher, runs: Path, sub: Path) -> None:
    first = launcher("-n", 2, "--seed", "7", sub, "fake.print=\u0448\u0430\u0433 $(touch pwned); 'x'")
    assert first.returncode == 0, first.stdout + first.stderr
    links = read_links(runs / "fake")
    assert [(link.exit_code, link.started["step"], link.step) for link in links] == [(75, 0, 5), (0, 5, 10)]
    assert (
        [link.seed for link in links] == [link.started["seed"] for link in links] == [link_seed(7, 1), link_seed(7, 2)]
    )
    assert links[0].submitted["argv"][0] == str(sub)
    assert links[0].submitted["argv"][1:3] == ["run.name=fake", "run.seed=7"]
    assert {"commit", "dirty", "job_id", "time"} <= links[0].submitted.keys()
    assert "\u0448\u0430\u0433 $(touch pwned); 'x'" in first.stdout, "the job's own output is shown as it is"
    assert not list(runs.parent.rglob("pwned"))
    for words in ("step 10", "31.0", "10.0", "512", "test/loss", "1.25", "report.html", str(link_seed(7, 2))):
        assert words in first.stdout
    assert max(map(len, first.stdout.splitlines())) < 400

    modes = {path.stat().st_mode & 0o077 for path in (runs / "fake").rglob("*")} | {runs.stat().st_mode & 0o077}
    assert modes == {0}, "runs are their owner's"

    before = (runs / "fake" / "chain.jsonl").read_bytes()
    again = launcher("-n", 2, sub)
    assert again.returncode == 0
    assert "done: nothing to do" in again.stdout
    assert "31.0" in again.stdout
    assert (runs / "fake" / "chain.jsonl").read_bytes() == before


def test_an_unfinished_run_goes_on_with_the_settings_it_had(launcher: Launcher, runs: Path, sub: Path) -> None:
    first = launcher(sub, "fake.steps_per_link=3", "fake.total=9")
    assert first.returncode == 75
    assert "-n 1 --run fake" in first.stdout
    second = launcher("-n2", sub, "fake.steps_per_link=4")
    assert second.returncode == 0, second.stdout + second.stderr
    assert [(link.number, link.step) for link in read_links(runs / "fake")] == [(1, 3), (2, 7), (3, 9)]
    assert "as link 1: fake.steps_per_link=3 fake.total=9" in second.stdout


def test_settings_first_or_between_options(launcher: Launcher, runs: Path, sub: Path) -> None:
    assert launcher("--run", "other", sub, "fake.total=1", "-n", "1", "fake.print=b").returncode == 0
    assert (runs / "other" / DONE).exists()


def test_a_crashing_link_is_followed_by_the_next_until_none_helps(launcher: Launcher, runs: Path, sub: Path) -> None:
    chain = launcher("-n5", sub, "fake.at=7", "fake.exit=1", "fake.total=20")
    assert chain.returncode == 1
    # link 2 crashes at step 7; link 3 goes on from link 1's checkpoint and crashes there again
    assert [link.exit_code for link in read_links(runs / "fake")] == [75, 1, 1]
    assert (runs / "fake" / FAILED).read_text() == (
        "links 2 and 3 made no new step; link 3: crashed (a bug): as it was told\n"
    )
    mended = launcher("-n1", sub, "fake.at=-1", "fake.total=8")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "it had failed" in mended.stdout
    assert not (runs / "fake" / FAILED).exists()


@pytest.mark.parametrize("code, words", [(85, "configuration error"), (89, "too many bad samples")])
def test_hopeless_failures_stop_at_once(launcher: Launcher, runs: Path, sub: Path, code: int, words: str) -> None:
    chain = launcher("-n3", sub, f"fake.exit={code}", "fake.is_silent=1")
    assert chain.returncode == code
    assert [link.exit_code for link in read_links(runs / "fake")] == [code], (
        "from the job itself: the recipe said nothing"
    )
    assert words in (runs / "fake" / FAILED).read_text()
    assert words in chain.stderr


def test_links_that_make_no_step_stop_the_chain(launcher: Launcher, runs: Path, sub: Path) -> None:
    chain = launcher("-n5", sub, "fake.steps_per_link=0")
    assert chain.returncode == 75
    assert [link.exit_code for link in read_links(runs / "fake")] == [75, 75]
    assert "links 1 and 2 made no new step" in (runs / "fake" / FAILED).read_text()


def test_a_killed_link_is_known_as_killed(launcher: Launcher, runs: Path, sub: Path) -> None:
    chain = launcher("-n2", sub, "fake.exit=-9", "fake.is_silent=1")
    assert chain.returncode == 137
    assert [link.outcome for link in read_links(runs / "fake")] == ["killed by signal 9"] * 2


def test_ctrl_c_lets_the_link_save(runs: Path, sub: Path) -> None:
    chain = start("-n3", sub, "fake.step_s=0.1", "fake.steps_per_link=1000", "fake.total=2000")
    ledger = runs / "fake" / "chain.jsonl"
    wait_for(lambda: ledger.exists() and "started" in ledger.read_text(), what="the first link")
    time.sleep(0.3)
    os.killpg(chain.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, _ = chain.communicate(timeout=30)
    assert chain.returncode == 75, output
    (link,) = read_links(runs / "fake")
    assert link.exit_code == 75
    assert (runs / "fake" / "checkpoints" / f"step_{link.step:08d}" / "COMPLETE").exists()
    assert f"can go on from step {link.step} with: ./launch.sh -n 1 --run fake" in output
    assert find_writer(link.started) is None


def test_a_third_ctrl_c_kills(runs: Path, tmp_path: Path) -> None:
    stubborn = "python - <<'E'\nimport signal, time\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"
    stubborn += "print('deaf', flush=True)\nfor _ in range(600): time.sleep(0.1)\nE"
    sub = write_sub(tmp_path / "deaf.sub", setup=f"trap : TERM\n{stubborn}")
    chain = start(sub)
    logs = runs / "fake" / "logs"
    wait_for(lambda: any("deaf" in log.read_text() for log in logs.glob("link_1/*.out")), what="the link")
    for _ in range(3):
        chain.send_signal(signal.SIGINT)
        time.sleep(0.5)
    output, _ = chain.communicate(timeout=30)
    assert "once more kills it" in output
    assert read_links(runs / "fake")[0].exit_code == -9


def test_the_time_limit_is_kept(launcher: Launcher, runs: Path, tmp_path: Path) -> None:
    header = "#SBATCH --job-name=fake\n#SBATCH --time=0:06\n"
    sub = write_sub(tmp_path / "short.sub", header=header)
    chain = launcher("-n1", sub, "fake.step_s=0.1", "fake.steps_per_link=1000", "fake.total=2000")
    assert "--time=0:06 is nearly over" in chain.stdout
    (link,) = read_links(runs / "fake")
    assert link.exit_code == 75
    assert 1 <= link.step <= 65


def test_one_launcher_at_a_time(launcher: Launcher, runs: Path, sub: Path) -> None:
    chain = start("-n1", sub, "fake.step_s=0.1", "fake.steps_per_link=1000", "fake.total=2000")
    ledger = runs / "fake" / "chain.jsonl"
    wait_for(lambda: ledger.exists() and "started" in ledger.read_text(), what="the first link")
    second = launcher("-n1", sub)
    assert second.returncode == 92
    assert "another launcher is at work" in second.stderr
    chain.send_signal(signal.SIGTERM)
    chain.communicate(timeout=30)
    assert chain.returncode == 75


def test_cancel_saves_and_extend_lifts_it(launcher: Launcher, runs: Path, sub: Path) -> None:
    chain = start("-n3", sub, "fake.step_s=0.1", "fake.steps_per_link=1000", "fake.total=2000")
    ledger = runs / "fake" / "chain.jsonl"
    wait_for(lambda: ledger.exists() and "started" in ledger.read_text(), what="the first link")
    process = psutil.Process(read_links(runs / "fake")[0].started["pid"])
    lease = {"host": os.uname().nodename, "pid": process.pid, "started": process.create_time()}
    write_json(runs / "fake" / LEASE, {**lease, "heartbeat": time.time(), "token": 1, "job_id": "x"})
    assert json.loads(launcher("status", "fake", "--json").stdout)["state"] == "running"
    cancelled = launcher("cancel", "fake")
    assert "it saves and stops" in cancelled.stdout
    output, _ = chain.communicate(timeout=30)
    assert chain.returncode == 75
    assert "the run was cancelled" in output
    (link,) = read_links(runs / "fake")
    assert link.exit_code == 75
    assert (runs / "fake" / STOP).exists()

    refused = launcher("-n1", sub)
    assert refused.returncode == 85
    assert "extend fake" in refused.stderr
    extended = launcher(
        "extend", "fake", "-n", "1", "fake.steps_per_link=2", "fake.step_s=0", f"fake.total={link.step + 2}"
    )
    assert extended.returncode == 0, extended.stdout + extended.stderr
    assert "done: nothing to cancel" in launcher("cancel", "fake").stdout


def test_a_signal_before_training_loses_nothing(runs: Path, tmp_path: Path) -> None:
    sub = write_sub(tmp_path / "slow.sub", setup="echo waiting; sleep 20")
    chain = start(sub)
    wait_for(lambda: list(runs.glob("fake/logs/link_1/*.out")), what="the link")
    time.sleep(0.5)
    began = time.monotonic()
    chain.send_signal(signal.SIGINT)
    output, _ = chain.communicate(timeout=30)
    assert time.monotonic() - began < 10, output
    assert chain.returncode == 75


def test_debug_runs_in_this_terminal(launcher: Launcher, runs: Path, sub: Path) -> None:
    chain = launcher("-n2", "--cluster", "debug", sub)
    assert chain.returncode == 0, chain.stdout + chain.stderr
    assert [link.exit_code for link in read_links(runs / "fake")] == [75, 0]
    assert "step 10\n" in chain.stdout


@pytest.mark.parametrize(
    "words, says",
    [
        (["--run", "../up"], "only letters, digits"),
        (["--run", ".."], "only letters, digits"),
        (["--run", "a b"], "only letters, digits"),
        (["optim.lr"], "expected key=value"),
        (["run.name=x"], "--run x"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "1", "run.seed=2"], "--run NAME"),
        (["run.seed=abc"], "run.seed=abc"),
        (["--after", "12"], "only SLURM has a queue"),
    ],
)
def test_bad_words_are_refused_before_anything_is_made(
    launcher: Launcher, runs: Path, sub: Path, words: list[str], says: str
) -> None:
    refused = launcher("--cluster", "local", sub, *words)
    assert refused.returncode == 85
    assert says in refused.stderr
    assert not runs.exists()


def test_another_seed_needs_another_run(launcher: Launcher, runs: Path, sub: Path) -> None:
    launcher("--seed", "1", sub, "fake.total=100")
    (runs / "fake" / "config.yaml").write_text("run: {seed: 1}\n")
    for words in (["--seed", "2"], ["run.seed=2"]):
        refused = launcher(sub, *words)
        assert refused.returncode == 85
        assert "--run NAME" in refused.stderr
    assert launcher("--seed", "1", sub).returncode == 75
    assert [link.seed for link in read_links(runs / "fake")] == [link_seed(1, 1), link_seed(1, 2)]


def test_the_ledger_is_one_object_a_line(launcher: Launcher, runs: Path, sub: Path) -> None:
    launcher("-n2", sub)
    events = [(record["event"], record["link"]) for record in read_records(runs / "fake" / "chain.jsonl")]
    assert sorted(events) == [
        ("ended", 1),
        ("ended", 2),
        ("started", 1),
        ("started", 2),
        ("submitted", 1),
        ("submitted", 2),
    ]
