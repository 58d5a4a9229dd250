"""Memory of a process with its workers, and processes that are gone."""

import multiprocessing
import os
import socket
import subprocess
import time

import psutil
import torch

from core.rundir.processes import PeakMemory, find_process, find_writer, memory_gib, session_members
from core.rundir.whole_files import now


def _hold(ready: object, end: object) -> None:
    ballast = torch.ones(2**27 // 4)  # 0.125 GiB
    ready.set()  # type: ignore[attr-defined]
    end.wait(30)  # type: ignore[attr-defined]
    assert ballast.numel()


def test_what_workers_hold_counts_and_what_they_share_counts_once() -> None:
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    shared = torch.ones(2**28 // 4)  # 0.25 GiB, which the worker gets by fork
    with PeakMemory() as peak:
        before = memory_gib()
        worker = context.Process(target=_hold, args=(ready, end))
        worker.start()
        assert ready.wait(30)
        assert 0.12 < memory_gib() - before < 0.2
        assert peak.read_gib() > before + 0.12
        end.set()
        worker.join()
        assert memory_gib() < before + 0.05 and shared.numel()
        assert peak.read_gib() > before + 0.12, "the peak stays"


def test_a_process_is_found_by_number_and_start() -> None:
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    started = psutil.Process(child).create_time()
    found = find_process(child, started=started)
    assert found is not None and found.pid == child
    assert find_process(child, started=started - 5) is None, "the number was used again"
    os.kill(child, 9)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert find_process(child, started=started) is None, "a zombie is dead"
    os.waitpid(child, 0)
    assert find_process(child, started=started) is None


def test_the_writer_of_an_event_had_begun_before_it_wrote() -> None:
    event = {"host": socket.gethostname(), "pid": os.getpid(), "time": now()}
    found = find_writer(event)
    assert found is not None and found.pid == os.getpid()
    assert find_writer({**event, "time": "2026-01-01T00:00:00Z"}) is None, "the number was used again"
    assert find_writer({**event, "host": "elsewhere"}) is None
    assert find_writer({}) is None, "it has told of no start yet"


def test_the_members_of_a_session() -> None:
    with subprocess.Popen(["sleep", "30"], start_new_session=True) as leader:
        assert session_members(leader.pid) == [leader.pid]
        leader.kill()
        os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
        assert session_members(leader.pid) == [], "a zombie is no member"
