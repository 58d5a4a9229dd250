"""The lease of a job that is over, against the real lease of a job."""

import socket
from pathlib import Path

import pytest

from core.runfiles import read_json, write_json
from core.train.lease import Lease, LeaseHeld
from launchers.takeover import take_over
from tests.launchers.conftest import FakeCluster


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A run whose lease job 11 holds, on a node that is not this machine."""
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
