"""A real SLURM for each test worker, and what a test does with it: launch, look, wait for an event, break something."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from core.rundir.files import LEDGER
from core.rundir.ledger import LinkRecord, read_links
from core.rundir.whole_files import read_records
from launchers.here.environment import ROOT
from slurm.virtual.cluster import Cluster, ClusterError

NUM_NODES, NUM_GPUS = 4, 4
COMMAND_TIMEOUT_S = 120.0
EVENT_TIMEOUT_S = 180.0  # of a busy machine: nothing waits longer than it must
POLL_S = 0.1

HEADER = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --cpus-per-task=1
#SBATCH --mem=100M
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
"""
FAKE = "tests.launchers.fake_recipe"


@dataclass
class Slurm:
    """The cluster, and a place of this test for runs and .sub files."""

    cluster: Cluster
    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def sub(self, *, name: str = "fake", program: str = FAKE, nodes: int = 1, tasks: int = 1, more: str = "") -> Path:
        """A .sub file of the usual pattern for a module and its arguments; `more`: further lines of its header."""
        path = self.folder / f"{name}.sub"
        header = HEADER.format(name=name, nodes=nodes, tasks=tasks)
        path.write_text(f'{header}{more}\nsource slurm/env.sh\nsrun python -m {program} "$@"\n')
        return path

    def launch(self, *words: str | Path | int, code: int = 0) -> str:
        """`./launch.sh` with some words; what it prints."""
        command = [sys.executable, "-P", "-m", "launchers", *map(str, words)]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        assert answer.returncode == code, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    def ask(self, *words: str) -> str:
        """One of SLURM's commands; what it prints."""
        answer = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        assert answer.returncode == 0, f"{words}: {answer.stderr}"
        return answer.stdout

    def facts(self, job: str) -> dict[str, str]:
        """What SLURM says of a job."""
        return dict(
            word.split("=", 1) for word in self.ask("scontrol", "show", "job", "-o", job).split() if "=" in word
        )

    def state(self, job: str) -> str:
        return self.facts(job)["JobState"]

    def queue(self) -> list[str]:
        """The jobs that wait or run, each task of an array by itself."""
        return self.ask("squeue", "--noheader", "--array", "--format=%i").split()

    def links(self, run: str = "fake") -> list[LinkRecord]:
        return read_links(self.runs / run)

    def events(self, event: str, run: str = "fake") -> list[dict[str, Any]]:
        return [record for record in read_records(self.runs / run / LEDGER) if record["event"] == event]

    def wait_for(
        self, condition: Callable[[], Any], what: str, *, timeout_s: float = EVENT_TIMEOUT_S, run: str = "fake"
    ) -> None:
        """Until a condition holds; when it does not come to pass, all that the run and SLURM have to say."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s:.0f} s for {what}\n{self.story(run)}")
            time.sleep(POLL_S)

    def wait_for_starts(self, number: int, run: str = "fake") -> dict[str, Any]:
        """Until links of the run have begun to train so many times; the last start."""
        self.wait_for(lambda: len(self.events("started", run)) >= number, f"start {number}", run=run)
        return self.events("started", run)[number - 1]

    def wait_until_over(self, run: str = "fake", *, timeout_s: float = EVENT_TIMEOUT_S) -> None:
        """Until no job of the run waits or runs."""
        jobs = {link.job_id for link in self.links(run)}
        self.wait_for(lambda: not jobs & set(self.queue()), "the end of all links", timeout_s=timeout_s, run=run)

    def skip_hold(self, job: str) -> None:
        """Let a requeued job start now; SLURM would hold it for two minutes, and refuses in the first second or two.

        A node's clock of credentials counts whole seconds: in the one in which it revoked the job's it refuses the job,
        which then ends as failed.
        """
        self.wait_for(lambda: self.facts(job)["JobState"] == "PENDING", f"job {job} in the queue again")
        seen = time.monotonic()
        self.wait_for(lambda: time.monotonic() - seen > 2.0, "another second of the nodes' clocks")
        command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        self.wait_for(lambda: subprocess.run(command, capture_output=True).returncode == 0, "an end of the hold")

    def shorten(self, job: str, seconds: float) -> None:
        """Move the time limit of a running job."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        self.ask("scontrol", "update", f"JobId={job}", f"EndTime={end}")

    def kill_rank(self, run: str) -> None:
        """SIGKILL to rank 0 of the link at work, on its node (scancel would ask it to stop first)."""
        started = self.events("started", run)[-1]
        job = next(one.job_id for one in self.links(run) if one.number == started["link"])
        beside = ["--overlap", "--mem=0", "--gres=none", "--nodes=1", "--ntasks=1", f"--nodelist={started['host']}"]
        self.ask("srun", f"--jobid={job}", *beside, "kill", "-KILL", str(started["pid"]))

    def log(self, run: str = "fake") -> str:
        paths = sorted(self.runs.glob(f"{run}/logs/link_*/*.out"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text(errors="replace") for path in paths)

    def story(self, run: str) -> str:
        ledger = self.runs / run / LEDGER
        told = ledger.read_text() if ledger.exists() else "no ledger"
        return f"{told}\n{self.log(run)[-3000:]}\n{self.ask('squeue')}\n{self.ask('sinfo', '-N')}"


def lacking(what: str) -> NoReturn:
    """What this machine cannot do is not tested on it; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One a test worker: what a test does to its nodes disturbs no other test."""
    folder = Path(tempfile.mkdtemp(prefix="mc-", dir="/tmp"))  # a short path, for sockets
    try:
        found = Cluster.up(folder, num_nodes=NUM_NODES, num_gpus=NUM_GPUS)
    except ClusterError as error:
        lacking(str(error))
    yield found
    found.down()


@pytest.fixture
def slurm(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The cluster for one test; afterwards its jobs are gone and its nodes are well."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_", "BATON_")):
            monkeypatch.delenv(name)
    own = {"BATON_RUNS": str(tmp_path / "runs"), "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    for name, value in {**cluster.environment(), **own, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    slurm = Slurm(cluster, tmp_path)
    yield slurm
    for node in cluster.nodes:  # a test may have killed it, cut it off or set it down
        state = slurm.ask("sinfo", "--noheader", f"--nodes={node}", "--partition=main", "--format=%T").strip()
        if cluster.daemon(node).pid is None:
            cluster.start(node)
        elif state.startswith("down"):
            cluster.restart(node)
    slurm.ask("scancel", "--user", slurm.ask("id", "-un").strip())
    slurm.wait_for(lambda: not slurm.queue(), "an empty queue")
    slurm.wait_for(lambda: slurm.ask("sinfo", "-h", "-p", "main", "-o", "%T").split() == ["idle"], "idle nodes")
