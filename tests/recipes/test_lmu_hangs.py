"""Ranks that hang: the one that does is named, with what it was doing; stacks are on disk; the next link goes on."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import core.data.batch
from core.data.reading import Reading, read_cut
from core.rundir.exit_codes import ExitCode
from core.rundir.files import LEDGER, LOGS, METRICS
from core.rundir.whole_files import read_json, read_records
from tests.recipes import runs

LIMIT_S = 3.0
COMMON = (f"train.watchdog.limit_s={LIMIT_S}", "train.max_steps=12", "checkpoint.every_steps=4")
HANG_AT = 6  # a micro-batch of a rank: step 7 of 2 ranks


def _hung(job: runs.Job, *, stopped: int | None = None) -> float:
    """Wait for the ranks to leave with 86; kill the stopped one, as torchrun and srun do. Seconds that it took."""
    began = time.monotonic()
    for rank, process in enumerate(job.processes):
        if rank != stopped:
            process.join(60)
            assert process.exitcode == ExitCode.HANG, (rank, job.text)
    seconds = time.monotonic() - began
    if stopped is not None:
        job.processes[stopped].kill()
        job.processes[stopped].join()
    return seconds


def _stacks(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (run / LOGS / "link_1" / "ranks").iterdir()}


def _assert_told_and_continued(job: runs.Job, config: Path, root: Path, *, words: tuple[str, ...]) -> None:
    """The ledger has the end with the reason, the lease is free, and a link without the fault finishes the run."""
    ended = list(read_records(root / "tiny" / LEDGER))[-1]
    assert (ended["event"], ended["exit_code"]) == ("ended", ExitCode.HANG), job.text
    for word in words:
        assert word in ended["reason"] and word in job.text, ended
    codes, text = runs.link(config, root, *COMMON, num_ranks=len(job.processes))
    assert codes == [ExitCode.DONE] * len(job.processes), text
    started = [record["step"] for record in read_records(root / "tiny" / LEDGER) if record["event"] == "started"]
    assert started == [0, 4]
    assert not (root / "tiny" / LOGS / "link_2" / "ranks").exists(), "a link that ends well leaves no file"


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_by_the_other(stopped: int, config: Path, tmp_path: Path) -> None:
    def hook(place: int) -> None:
        if place == HANG_AT and os.environ["RANK"] == str(stopped):
            time.sleep(2 * LIMIT_S / 20)  # until it has told where it is
            os.kill(os.getpid(), signal.SIGSTOP)

    job = runs.begin(config, tmp_path, *COMMON, num_ranks=2, hook=hook)
    seconds = _hung(job, stopped=stopped)
    assert seconds < 20 + LIMIT_S, "the limit, and the start"
    pid = job.processes[stopped].pid
    words = (f"rank {stopped} (", f"process {pid}) hung in forward of step 7: stopped", "1 of 2 ranks wait in reduce")
    stacks = _stacks(tmp_path / "tiny")
    assert "all_reduce" in stacks[f"rank_{1 - stopped:05d}.log"] or "backward" in stacks[f"rank_{1 - stopped:05d}.log"]
    _assert_told_and_continued(job, config, tmp_path, words=words)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_endless_loop_in_the_data_shows_its_stack(
    num_workers: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, place = 0, tmp_path / "who loops"

    def read_until_it_loops(cut: Any, **options: Any) -> Reading:
        nonlocal read
        read += 1
        if read > 2 * HANG_AT // max(1, num_workers) and os.environ.get("RANK", "1") == "1":
            place.write_text(str(os.getpid()))
            while True:
                pass
        return read_cut(cut, **options)

    monkeypatch.setattr(core.data.batch, "read_cut", read_until_it_loops)
    job = runs.begin(config, tmp_path, *COMMON, f"loader.num_workers={num_workers}", num_ranks=2)
    _hung(job)
    monkeypatch.undo()
    living = [one.pid for one in psutil.process_iter() if one.status() != psutil.STATUS_ZOMBIE]
    assert int(place.read_text()) not in living, "a worker that loops would outlive its rank"
    stacks = _stacks(tmp_path / "tiny")
    assert "read_until_it_loops" in stacks["rank_00001.log"]
    assert "read_until_it_loops" not in stacks["rank_00000.log"]
    ended = list(read_records(tmp_path / "tiny" / LEDGER))[-1]
    assert "rank 1 (" in ended["reason"] and "hung in data of step" in ended["reason"], ended
    assert "1 of 2 ranks wait in vote" in ended["reason"]
    _assert_told_and_continued(job, config, tmp_path, words=("rank 1 (", "hung in data"))


def test_a_process_alone_that_loops_ends_too(config: Path, tmp_path: Path) -> None:
    def hook(place: int) -> None:
        while place == 2 * HANG_AT:
            pass

    job = runs.begin(config, tmp_path, *COMMON, hook=hook)
    assert job.wait(40) == [ExitCode.HANG], job.text
    assert "in hook" in _stacks(tmp_path / "tiny")["rank_00000.log"]
    assert read_json(tmp_path / "tiny" / "lease.json")["heartbeat"] == 0.0, "the lease is released"
    _assert_told_and_continued(job, config, tmp_path, words=("rank 0 (", "hung in forward of step 7"))


def test_a_slow_rank_is_a_straggler_and_not_hung(config: Path, tmp_path: Path) -> None:
    def hook(place: int) -> None:
        time.sleep(LIMIT_S / 2 if place == HANG_AT and os.environ["RANK"] == "1" else 0.0)

    codes, text = runs.link(config, tmp_path, *COMMON, num_ranks=2, hook=hook)
    assert codes == [ExitCode.DONE] * 2, text
    assert "rank 1 on " in text and "holds the others up" in text
    assert "rank 1: rank " not in text, "the first rank alone says it"
    records = [record for record in read_records(tmp_path / "tiny" / METRICS) if record["phase"] == "train"]
    slow = records[HANG_AT]
    assert slow["straggler_rank"] == 1 and 1.5 < slow["straggler_ratio"] <= 2.0, slow
    for record in records:
        assert 0 < record["tflops_per_device"] <= record["padded_tflops_per_device"]
        assert record["mfu"] is None and record["padded_mfu"] is None, "nobody knows the peak of a CPU"
        assert record["run_memory_gib"] > 0.1
