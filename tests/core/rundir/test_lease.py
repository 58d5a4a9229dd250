"""The lease: one holder at a time, a token that grows, and a dead holder that stands in nobody's way."""

import json
import os
import socket
import time
from pathlib import Path

import psutil
import pytest

from core.rundir.exit_codes import ExitCode
from core.rundir.files import LEASE
from core.rundir.lease import STALE_S, Lease, LeaseHeld, find_holder


def write_holder(folder: Path, **facts: object) -> None:
    holder = {"token": 4, "job_id": "77", "host": "elsewhere", "pid": 1, "started": 0.0, "seen": "then"}
    (folder / LEASE).write_text(json.dumps(holder | facts))


def test_second_holder_is_refused_and_told_who_holds(tmp_path: Path) -> None:
    first = Lease(tmp_path, job_id="12")
    with pytest.raises(LeaseHeld, match=rf"job 12 on {socket.gethostname()} \(process {os.getpid()}") as refused:
        Lease(tmp_path, job_id="13")
    assert refused.value.exit_code == ExitCode.LEASE
    first.release()
    second = Lease(tmp_path, job_id="13")
    assert second.token == first.token + 1
    second.release()


def test_holder_whose_process_is_gone_is_followed_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        Lease(tmp_path, job_id="1")
        os._exit(0)  # dies without releasing
    os.waitpid(child, 0)
    lease = Lease(tmp_path, job_id="2")
    assert lease.token == 2
    lease.release()


def test_a_process_id_that_was_used_again_holds_nothing(tmp_path: Path) -> None:
    me = psutil.Process()
    here = {"host": socket.gethostname(), "pid": me.pid, "heartbeat": time.time()}
    write_holder(tmp_path, **here, started=me.create_time())
    holder = find_holder(tmp_path)
    assert holder is not None and holder["job_id"] == "77"
    write_holder(tmp_path, **here, started=me.create_time() - 86400)
    assert find_holder(tmp_path) is None
    Lease(tmp_path, job_id="5").release()
    assert find_holder(tmp_path) is None, "released"


def test_other_host_counts_as_alive_while_its_heart_beats(tmp_path: Path) -> None:
    write_holder(tmp_path, heartbeat=time.time() - STALE_S / 2)
    with pytest.raises(LeaseHeld, match="job 77 on elsewhere"):
        Lease(tmp_path, job_id="5")
    write_holder(tmp_path, heartbeat=time.time() - STALE_S - 1)
    lease = Lease(tmp_path, job_id="5")
    assert lease.token == 5
    lease.release()


def test_a_holder_that_was_taken_for_dead_gives_nothing_back(tmp_path: Path) -> None:
    old = Lease(tmp_path, job_id="1")
    assert old.is_held
    write_holder(tmp_path, token=old.token + 1, heartbeat=time.time())
    assert not old.is_held
    before = (tmp_path / LEASE).read_text()
    old.release()
    assert (tmp_path / LEASE).read_text() == before
