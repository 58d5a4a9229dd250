"""The lease of a job that is over, against the real lease of a job."""

import socket
import time
from pathlib import Path

import pytest

from core.rundir.files import LEASE
from core.rundir.lease import STALE_S, Lease, LeaseHeld
from core.rundir.whole_files import read_json, write_json
from launchers.slurm import takeover
from launchers.slurm.takeover import take_over
from tests.launchers.conftest import FakeCluster


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose lease job 11 holds, on a node that is not this machine. Nobody waits to see whether it lives."""
    monkeypatch.setattr(takeover, "WAIT_S", 0.0)
    run = tmp_path / "run"
    run.mkdir()
    lease = Lease(run, job_id="11")
    lease.release()
    write_json(run / "lease.json", {**read_json(run / "lease.json"), "host": "n7", "heartbeat": 2e9})
    with pytest.raises(LeaseHeld):
        Lease(run, job_id="12")
    return run


@pytest.mark.parametrize("state", ["NODE_FAIL", "TIMEOUT", "CANCELLED", "COMPLETED"])
def test_the_next_link_need_not_wait_until_it_is_stale(cluster: FakeCluster, held: Path, state: str) -> None:
    cluster.answers("scontrol", f"echo 'JobId=11 JobName=run JobState={state} Reason=None'")
    assert take_over(held)
    lease = Lease(held, job_id="12")
    assert lease.token == 3, "more than the old job's, whatever that still writes"
    lease.release()
    assert not take_over(held), "a released lease is nobody's"


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'JobId=11 JobName=run JobState=RUNNING Reason=None'",
        "echo 'JobId=112 JobName=x JobState=FAILED'; echo 'JobId=11 JobState=COMPLETING'",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
    ],
)
def test_a_job_that_may_live_keeps_it(cluster: FakeCluster, held: Path, answer: str) -> None:
    cluster.answers("scontrol", answer)
    before = read_json(held / "lease.json")
    assert not take_over(held)
    assert read_json(held / "lease.json") == before


def test_a_forgotten_job_and_this_very_job_are_over(
    cluster: FakeCluster, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answers("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    lease = read_json(held / "lease.json")
    assert take_over(held)
    write_json(held / "lease.json", lease)
    cluster.answers("scontrol", "echo 'JobId=11 JobState=RUNNING Restarts=1'")
    monkeypatch.setenv("SLURM_JOB_ID", "11")
    assert take_over(held), "its first start holds the lease; SLURM has started it again"


def test_a_lease_without_a_slurm_job_is_left_alone(cluster: FakeCluster, held: Path) -> None:
    write_json(held / "lease.json", {**read_json(held / "lease.json"), "job_id": f"process-{socket.gethostname()}"})
    assert not take_over(held)
    assert cluster.calls("scontrol") == []


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_holder_of_which_nothing_is_known_is_watched(
    cluster: FakeCluster, held: Path, monkeypatch: pytest.MonkeyPatch, is_alive: bool
) -> None:
    cluster.answers("scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    looks = 0

    def later(seconds: float) -> None:
        nonlocal looks
        looks += 1
        lease = read_json(held / LEASE)
        beat = lease["heartbeat"] + 15 if is_alive else time.time() - STALE_S
        if looks == 2:
            write_json(held / LEASE, {**lease, "heartbeat": beat})

    monkeypatch.setattr(takeover, "WAIT_S", 60.0)
    monkeypatch.setattr(takeover, "_pause", later)
    write_json(held / LEASE, {**read_json(held / LEASE), "heartbeat": time.time() - 1})
    assert not take_over(held)
    assert looks == 2, "no longer than it takes to know"
    if is_alive:
        with pytest.raises(LeaseHeld):
            Lease(held, job_id="12")
    else:
        Lease(held, job_id="12").release()


def test_a_holder_that_slurm_knows_to_be_at_work_is_not_watched(
    cluster: FakeCluster, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "WAIT_S", 60.0)
    monkeypatch.setattr(takeover, "_pause", lambda seconds: pytest.fail("there is nothing to wait for"))
    cluster.answers("scontrol", "echo 'JobId=11 JobName=run JobState=RUNNING Reason=None'")
    assert not take_over(held)
