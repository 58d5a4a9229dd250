"""A job around a body of its own: who may begin, what the ledger says, when the ranks stop."""

import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.job.run import Outcome, Run, run_job
from core.job.settings import JobConfig, RunConfig
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CONFIG, LEASE, LEDGER, STOP
from core.rundir.whole_files import read_json, read_records, write_json
from tests.ranks import free_port


def config() -> JobConfig:
    return JobConfig(run=RunConfig(name="one", device="cpu"))


def in_ranks(runs: Path, body: Callable[[Run], Outcome], *, num: int = 1, **environment: str) -> list[int | None]:
    """The exit code of each rank of a job that does `body`."""
    places = {"BATON_RUNS": str(runs), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def work(rank: int) -> None:
        os.environ.update(places, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num), **environment)
        code = run_job(config(), body)
        os._exit(code)  # gloo threads may abort an ordinary exit

    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(num)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def _stopped_at_once(run: Run) -> Outcome:
    return Outcome(step=0, finished=False, reason="enough")


def test_nothing_gets_past_a_stop_whoever_started_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / STOP).write_text("cancelled by me\n")

    def body(run: Run) -> Outcome:
        raise AssertionError("nothing is to be trained")

    assert in_ranks(tmp_path, body, num=2) == [ExitCode.CONTINUE] * 2
    assert not (tmp_path / "one" / LEDGER).exists()
    assert read_json(tmp_path / "one" / LEASE)["heartbeat"] == 0.0, "nobody has to wait for it"
    (tmp_path / "one" / STOP).unlink()
    assert in_ranks(tmp_path, _stopped_at_once, num=2) == [ExitCode.CONTINUE] * 2
    assert [record["event"] for record in read_records(tmp_path / "one" / LEDGER)] == ["started", "ended"]


def test_the_ledger_tells_configurations_apart(tmp_path: Path) -> None:
    in_ranks(tmp_path, _stopped_at_once)
    in_ranks(tmp_path, _stopped_at_once)
    first, second = (r["config_hash"] for r in read_records(tmp_path / "one" / LEDGER) if r["event"] == "started")
    assert first == second == hashlib.sha256((tmp_path / "one" / CONFIG).read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("end, stops", [(4_000_000_000, False), (0, True)])
def test_in_slurm_all_ranks_heed_the_limit_that_squeue_tells(tmp_path: Path, end: int, stops: bool) -> None:
    """The environment says that the time is over; the limit has been changed since."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho {end or int(time.time())}\n")
    squeue.chmod(0o755)

    def body(run: Run) -> Outcome:
        deadline = time.monotonic() + 30
        while run.ranks.is_first and (run.stop.reason is None) == stops and time.monotonic() < deadline:
            time.sleep(0.02)  # until squeue has answered
        write_json(run.directory / f"rank{run.ranks.rank}.json", run.stops(0.0))
        return Outcome(step=0, finished=False, reason="enough")

    path, now = f"{tmp_path}:{os.environ['PATH']}", str(int(time.time()))
    codes = in_ranks(tmp_path, body, num=2, SLURM_JOB_ID="7", SLURM_JOB_END_TIME=now, PATH=path)
    assert codes == [ExitCode.CONTINUE] * 2
    assert [read_json(tmp_path / f"one/rank{rank}.json") for rank in (0, 1)] == [stops] * 2


def test_outside_of_slurm_a_deadline_is_for_every_rank(tmp_path: Path) -> None:
    def body(run: Run) -> Outcome:
        write_json(run.directory / f"rank{run.ranks.rank}.json", run.stop.reason is not None)
        run.ranks.barrier()
        return Outcome(step=0, finished=False, reason="enough")

    in_ranks(tmp_path, body, num=2, BATON_DEADLINE=str(int(time.time())))
    assert [read_json(tmp_path / f"one/rank{rank}.json") for rank in (0, 1)] == [True, True]
