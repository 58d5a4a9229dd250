"""Work shared by processes that know nothing of each other: every piece is made once, whoever is killed."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data import shared_work
from core.data.shared_work import Claims, Piece, SharedWork
from core.distributed import Ranks, init
from core.rundir.whole_files import append_record, read_records
from tests.ranks import run_on_ranks

ALONE = init(device="cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_work, "POLL_S", 0.02)


def forked(work: Callable[..., Any], *arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def pieces(folder: Path, num: int, *, seconds: float = 0.05) -> list[Piece]:
    """Files, whose making is recorded."""

    def make(path: Path) -> None:
        began = time.time()
        time.sleep(seconds)
        path.write_text("whole")
        append_record(folder / "made.jsonl", {"piece": path.name, "from": began, "to": time.time(), "pid": os.getpid()})

    paths = [folder / f"piece-{number}" for number in range(num)]
    return [Piece(path.name, path.exists, lambda path=path: make(path)) for path in paths]  # type: ignore[misc]


def work_in(folder: Path, *, number: int = 0, ranks: Ranks = ALONE, stops: Any = lambda seconds: False) -> SharedWork:
    return SharedWork(folder / ".claims", ranks=ranks, stops=stops, rng=np.random.default_rng(number))


def assert_made_once(folder: Path, num: int) -> None:
    made = list(read_records(folder / "made.jsonl"))
    assert sorted(record["piece"] for record in made) == sorted(f"piece-{number}" for number in range(num))


def _job(folder: Path, number: int, num: int, dies_after: int | None = None) -> None:
    def stops(seconds: float) -> bool:
        mine = [record for record in read_records(folder / "made.jsonl") if record["pid"] == os.getpid()]
        return dies_after is not None and len(mine) >= dies_after and os.kill(os.getpid(), signal.SIGKILL) is None

    work = work_in(folder, number=number, stops=stops)
    assert work.pieces("pieces", pieces(folder, num), is_over=lambda: False)
    assert all(piece.is_whole() for piece in pieces(folder, num)), "all of them, not only one's own"
    append_record(folder / "done.jsonl", {"number": number})


def test_several_jobs_make_every_piece_once(tmp_path: Path) -> None:
    jobs = [forked(_job, tmp_path, number, 12) for number in range(3)]
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert_made_once(tmp_path, 12)
    assert len({record["pid"] for record in read_records(tmp_path / "made.jsonl")}) == 3


def test_the_pieces_of_a_killed_job_are_made_by_the_others(tmp_path: Path) -> None:
    def dies_at_work(path: Path) -> None:
        work = work_in(tmp_path)
        stuck = [Piece("piece-3", path.exists, lambda: (path.with_suffix(".begun").touch(), time.sleep(60))[0])]
        work.pieces("pieces", stuck, is_over=lambda: False)

    victim = forked(dies_at_work, tmp_path / "piece-3")
    while not (tmp_path / "piece-3.begun").exists():
        time.sleep(0.01)
    job = forked(_job, tmp_path, 1, 5)
    job.join(1.5)
    assert job.is_alive(), "it waits for the piece that somebody is making"
    assert not (tmp_path / "piece-3").exists()
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    job.join(60)
    assert job.exitcode == 0
    assert_made_once(tmp_path, 5)


def _ranks_of_a_job(ranks: Ranks, folder: Path, num: int) -> tuple[bool, int]:
    shared_work.POLL_S = 0.02
    work = work_in(folder, number=ranks.rank, ranks=ranks)
    return work.pieces("pieces", pieces(folder, num), is_over=lambda: False), work.num_made


def test_the_ranks_of_a_job_share_with_another_job(tmp_path: Path) -> None:
    other = forked(_job, tmp_path, 7, 10)
    (done, num_made), theirs = run_on_ranks(_ranks_of_a_job, 2, tmp_path, 10)
    assert done and theirs == (done, num_made)
    other.join(60)
    assert other.exitcode == 0
    by_other = [record for record in read_records(tmp_path / "made.jsonl") if record["pid"] == other.pid]
    assert num_made == 10 - len(by_other), "of all ranks of this job, and of no other"
    assert_made_once(tmp_path, 10)


def _stops_on_rank_1(ranks: Ranks, folder: Path) -> bool:
    shared_work.POLL_S = 0.02
    work = work_in(folder, ranks=ranks, stops=lambda seconds: ranks.any(ranks.rank == 1))
    return work.pieces("pieces", pieces(folder, 9), is_over=lambda: False)


def test_a_stop_of_one_rank_ends_all_after_the_piece_at_hand(tmp_path: Path) -> None:
    assert run_on_ranks(_stops_on_rank_1, 2, tmp_path) == [False, False]
    assert len(list(tmp_path.glob("piece-*"))) == 2


def test_a_stop_does_not_wait_for_another_job(tmp_path: Path) -> None:
    with Claims(tmp_path / ".claims").held("piece-0") as is_ours:
        assert is_ours

        def stopped() -> None:
            work = work_in(tmp_path, stops=lambda seconds: True)
            assert not work.pieces("pieces", pieces(tmp_path, 1), is_over=lambda: False)
            with Claims(tmp_path / ".claims").held("piece-0") as is_theirs:
                assert not is_theirs

        job = forked(stopped)
        job.join(30)
        assert job.exitcode == 0


def test_what_is_over_is_not_made_again(tmp_path: Path) -> None:
    assert work_in(tmp_path).pieces("pieces", pieces(tmp_path, 3), is_over=lambda: True)
    assert not list(tmp_path.glob("piece-*"))


def _fit(folder: Path) -> None:
    def make() -> None:
        (folder / "begun").open("a").write("x")
        time.sleep(0.3)
        (folder / "made").write_text(json.dumps(os.getpid()))

    assert work_in(folder).by_one("fit", make, is_done=(folder / "made").exists)
    assert (folder / "made").exists()


def test_by_one_is_done_by_one_while_the_others_wait(tmp_path: Path) -> None:
    jobs = [forked(_fit, tmp_path) for _ in range(3)]
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert (tmp_path / "begun").read_text() == "x"


def test_a_long_piece_is_said(tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shared_work, "LONG_S", 0.01)
    work_in(tmp_path).pieces("features", pieces(tmp_path, 1), is_over=lambda: False)
    assert "features: a piece took 0 s, and a stop waits for it" in caplog.text


def test_claims_of_different_names_differ(tmp_path: Path) -> None:
    def other() -> None:
        claims = Claims(tmp_path / ".claims")
        for name, is_free in (("a", False), ("b", True)):
            with claims.held(name) as is_ours:
                assert is_ours == is_free
                with claims.held(f"{name}{name}") as is_ours:
                    assert is_ours

    with Claims(tmp_path / ".claims").held("a"):
        job = forked(other)
        job.join(30)
    assert job.exitcode == 0
