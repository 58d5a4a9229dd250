"""What the first link of a launch waits for, and two launches of one run at the same time."""

import json
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from core.rundir.files import LEASE
from core.rundir.ledger import read_links
from core.rundir.whole_files import read_json, write_json
from launchers.chain.chain import lock_run
from tests.launchers.conftest import FakeCluster, Launcher, launcher_command


def waits_for(run: Path, link: int) -> str:
    script = next((run / f"logs/link_{link}").glob("*_submission.sh")).read_text()
    return next((line.partition("=")[2] for line in script.splitlines() if "--dependency" in line), "")


@pytest.fixture
def queued(cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path) -> Path:
    """A run with two links, jobs 101 and 102: one at work, one waiting."""
    assert launcher("-n2", sub).returncode == 0
    cluster.answers("squeue", "echo '101|RUNNING|n1|N/A|None'; echo '102|PENDING||N/A|Dependency'")
    return runs / "fake"


def test_after_another_job_waits_for_the_runs_own_links_too(queued: Path, launcher: Launcher, sub: Path) -> None:
    assert launcher(sub).returncode == 0
    assert launcher("--after", "55", sub).returncode == 0
    assert launcher("--after", "102", sub).returncode == 0
    assert [waits_for(queued, link) for link in (3, 4, 5)] == ["afterany:102", "afterany:55:102", "afterany:102"]


def hold(run: Path, job: str) -> None:
    run.mkdir(parents=True, exist_ok=True)
    lease = {"token": 1, "job_id": job, "host": "n7", "pid": 1, "heartbeat": time.time()}
    (run / "lease.json").write_text(json.dumps(lease))


def test_after_another_job_than_the_one_at_work_is_refused(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path
) -> None:
    """Somebody typed `sbatch FILE.sub`: its job is not in the ledger as submitted, but holds the lease."""
    hold(runs / "fake", "71")
    refused = launcher("--after", "55", sub)
    assert refused.returncode == 92
    assert "in use by job 71 on n7" in refused.stderr
    assert cluster.calls("sbatch") == []
    assert launcher("--after", "71", sub).returncode == 0
    assert waits_for(runs / "fake", 1) == "afterany:71"


@pytest.mark.parametrize("is_reused", [True, False])
def test_a_holder_on_this_machine_is_a_process_and_its_start(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path, is_reused: bool
) -> None:
    """A process was killed a day ago, and the system has given its number to another."""
    hold(runs / "fake", "71")
    me = psutil.Process()
    started = me.create_time() - 86400 if is_reused else me.create_time()
    lease = {**read_json(runs / "fake" / LEASE), "host": socket.gethostname(), "pid": me.pid, "started": started}
    write_json(runs / "fake" / LEASE, lease)
    answer = launcher("--dry-run", sub)
    assert answer.returncode == (0 if is_reused else 92)
    assert ("in use by job 71" in answer.stderr) == (not is_reused)


def test_two_launches_at_the_same_time_do_not_start_side_by_side(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path
) -> None:
    cluster.answers("sbatch", 'echo "Submitted batch job $((100 + $(wc -l < "$0.log")))"; sleep 0.3')
    command = launcher_command("-n3", sub)
    launches = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    words = [launch.communicate(timeout=120)[1] for launch in launches]
    assert sorted(launch.returncode for launch in launches) == [0, 92], words
    assert [link.number for link in read_links(runs / "fake")] == [1, 2, 3]
    assert len(cluster.calls("sbatch")) == 3


def test_a_launcher_at_work_keeps_others_out(cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path) -> None:
    with lock_run(runs / "fake"):
        refused = launcher("-n2", sub)
    assert refused.returncode == 92
    assert "another launcher is at work on this run" in refused.stderr
    assert cluster.calls("sbatch") == []


def test_links_that_came_since_it_looked_are_seen(
    cluster: FakeCluster, launcher: Launcher, runs: Path, sub: Path
) -> None:
    """Another launch was whole between the look at the run and the submission."""
    other = " ".join(f"'{word}'" for word in launcher_command("-n1", sub))
    first = f'[ -e "$0.other" ] || {{ touch "$0.other"; {other} >/dev/null 2>&1; }}'
    write = cluster.folder / "git"
    write.write_text(f'#!/bin/bash\n{first}\nexec /usr/bin/git "$@"\n')
    write.chmod(0o755)
    late = launcher("-n2", sub)
    assert late.returncode == 92
    assert "has just been launched" in late.stderr and "extend fake -n 2" in late.stderr
    assert [link.number for link in read_links(runs / "fake")] == [1]


@pytest.mark.parametrize(
    "facts, is_signalled",
    [("JobId=71 JobState=RUNNING BatchHost=n7", True), ("JobId=71 JobState=RUNNING BatchHost=n3", False), ("", False)],
)
def test_cancel_reaches_a_job_that_nobody_submitted_with_the_launcher(
    cluster: FakeCluster, launcher: Launcher, runs: Path, facts: str, is_signalled: bool
) -> None:
    run = runs / "fake"
    hold(run, "71")
    (run / "chain.jsonl").write_text(json.dumps({"event": "started", "link": 1, "job_id": "71", "step": 0}) + "\n")
    cluster.answers("scontrol", f"echo '{facts}'")
    cancelled = launcher("cancel", "fake")
    assert cluster.calls("scancel") == (["--signal=USR1 71"] if is_signalled else [])
    assert ("it saves and stops" in cancelled.stdout) == is_signalled
    assert ("warning: 71 on n7 is at work and goes on" in cancelled.stdout) == (not is_signalled)
    assert (run / "STOP").exists()
