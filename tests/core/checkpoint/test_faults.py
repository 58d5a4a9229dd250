"""Full disks and kills: the last good checkpoint stays, and comes back."""

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.checkpoint.store import StorageError
from core.distributed import Ranks
from tests.core.checkpoint.checkpoints import TinyEngine, complete_steps, names, restored, save_steps, store
from tests.ranks import run_on_ranks
from tests.small_disk import small_disk


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="1m") as disk:
        save_steps(store(disk / "checkpoints"), 10)
        (disk / "ballast").write_bytes(bytes(900_000))
        big = TinyEngine(size=200).at(20)  # 160 kB and twice that for its optimizer
        checkpoints = store(disk / "checkpoints")
        with pytest.raises(StorageError, match="No space left on device") as caught:
            checkpoints.save(big, {"step": 20}, step=20, wait=True)
        assert caught.value.exit_code == 87
        text = str(caught.value)
        assert f"{disk}/checkpoints/.step_00000020.tmp-1" in text and "needs about" in text and "are free" in text
        assert f"the last good checkpoint is {disk}/checkpoints/step_00000010" in text
        assert names(disk / "checkpoints") == ["step_00000010"]
        assert restored(disk / "checkpoints") == ({"step": 10}, 10)
        (disk / "ballast").unlink()
        checkpoints.save(big, {"step": 20}, step=20, wait=True)
        assert names(disk / "checkpoints") == ["step_00000010", "step_00000020"]


def in_child(work: Callable[[], None]) -> str:
    """What `work` raised, in a forked process, which may limit itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing"
        try:
            work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text[:4000].encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.parametrize("limit_bytes", [3_000, 20_000, 200_000])
def test_a_limit_on_files_is_a_storage_error(limit_bytes: int, tmp_path: Path) -> None:
    save_steps(store(tmp_path), 10)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        store(tmp_path).save(TinyEngine(size=500).at(20), {"step": 20}, step=20, wait=True)

    text = in_child(work)
    assert text.startswith("StorageError: cannot write") and "File too large" in text
    assert names(tmp_path) == ["step_00000010"]
    assert restored(tmp_path) == ({"step": 10}, 10)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        save_steps(store(tmp_path / "file" / "checkpoints"), 10)
    if os.geteuid() == 0:
        return
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        save_steps(store(tmp_path / "locked"), 10)


def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """A process saves one step after the other and is killed; what comes back is the last one that was complete."""
    random.seed(0)
    torch.set_num_threads(1)
    at_least, inside = 0, 0
    for token in range(1, 21):
        child = os.fork()
        if child == 0:
            try:
                engine = TinyEngine(size=60)
                checkpoints = store(tmp_path, token=token, keep_last=2)
                state = checkpoints.restore(engine) or {"step": 0}
                for step in range(state["step"] + 1, 10_000):
                    checkpoints.save(engine.at(step), {"step": step}, step=step)
            finally:
                os._exit(1)
        if token > 5:  # the first ones are killed in or before the very first save
            deadline = time.monotonic() + 60
            while complete_steps(tmp_path)[-1:] <= [at_least] and time.monotonic() < deadline:
                time.sleep(0.001)
        time.sleep(random.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        inside += any(name.startswith(".") for name in names(tmp_path)) if tmp_path.exists() else 0
        newest = max(complete_steps(tmp_path), default=0)
        engine = TinyEngine(size=60)
        state = store(tmp_path, token=token).restore(engine)
        if newest:
            assert state == {"step": newest} and engine.step == newest >= at_least
            at_least = newest
        assert not list(tmp_path.glob("*.damaged*"))
    assert inside >= 5, "some of the kills should have hit a save"
    assert at_least >= 15


def full_on_one_rank(ranks: Ranks, directory: Path) -> list[str]:
    engine = TinyEngine(size=200, ranks=ranks)
    checkpoints = store(directory, ranks=ranks)
    checkpoints.save(engine.at(10), {"step": 10}, step=10, wait=True)
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
    errors = []
    checkpoints.save(engine.at(20), {"step": 20}, step=20)
    for _ in range(200):
        try:
            checkpoints.poll()
        except StorageError as error:
            errors.append(str(error))
            break
        time.sleep(0.01)
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(engine.at(30), {"step": 30}, step=30, wait=True)
    ranks.barrier()
    return [*errors, *names(directory)]


def test_a_disk_that_is_full_on_one_rank_ends_the_save_on_all(tmp_path: Path) -> None:
    first, second = run_on_ranks(full_on_one_rank, 2, tmp_path)
    assert first == second
    assert "File too large" in first[0] and "rank 1" in first[0]
    assert first[1:] == ["step_00000010", "step_00000030"]
