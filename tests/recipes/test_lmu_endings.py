"""How a link ends when it cannot go on: no space, no memory, no finite gradient, a rank that died, Ctrl-C."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import core.data.batch
import recipes.lmu_gigaspeech.train as recipe
from core.losses.output import LossOutput
from core.rundir.checkpoints import list_complete
from core.rundir.exit_codes import ExitCode
from core.rundir.files import CHECKPOINTS, LEDGER, METRICS, OUT_OF_MEMORY, SKIPPED_UPDATES
from core.rundir.whole_files import read_records
from tests.recipes import runs
from tests.small_disk import small_disk

TWO = {"num_ranks": 2}
PLAIN = ("checkpoint.asynchronous=false",)


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, longer than the others."""
    root = tmp_path_factory.mktemp("whole")
    codes, text = runs.link(config, root, "train.max_steps=14", "optim.schedule.kind=constant")
    assert codes == [ExitCode.DONE], text
    return root / "tiny"


def _ended(root: Path) -> dict[str, Any]:
    record = list(read_records(root / "tiny" / LEDGER))[-1]
    assert record["event"] == "ended"
    return record


def _steps(root: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_complete(root / "tiny" / CHECKPOINTS)]


def _is_second() -> bool:
    return os.environ.get("RANK", "1") == "1"


# ---- no space


def _until_full(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast:
        for size in (65536, 512, 1):
            try:
                while ballast.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_a_full_disk_ends_the_run_and_costs_nothing_saved(config: Path, whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="2m") as disk:
        ballast = disk / "ballast"

        def hook(place: int) -> None:
            if place == 5:  # in step 3
                _until_full(ballast)

        codes, text = runs.link(config, disk, *PLAIN, "loggers.tensorboard=true", hook=hook)
        assert codes == [ExitCode.STORAGE], text
        assert "No space left on device" in text
        assert _steps(disk) == [2]
        ballast.unlink()
        codes, text = runs.link(config, disk, *PLAIN)
        assert codes == [ExitCode.DONE], text
        assert runs.losses(disk / "tiny") == runs.losses(whole)[:6]


def test_a_quota_ends_the_run_and_costs_nothing_saved(config: Path, whole: Path, tmp_path: Path) -> None:
    def hook(place: int) -> None:
        if place == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))  # less than a checkpoint

    codes, text = runs.link(config, tmp_path, *PLAIN, hook=hook)
    assert codes == [ExitCode.STORAGE], text
    ended = _ended(tmp_path)
    assert ended["exit_code"] == ExitCode.STORAGE and ended["step"] == 4, ended
    assert "File too large" in ended["reason"] and "the last good checkpoint is" in ended["reason"]
    assert _steps(tmp_path) == [2]
    codes, text = runs.link(config, tmp_path, *PLAIN)
    assert codes == [ExitCode.DONE], text
    assert runs.losses(tmp_path / "tiny") == runs.losses(whole)[:6]


# ---- no memory


def _huge_object(place: int) -> None:
    if place == 3 and _is_second():
        bytearray(1 << 46)


def _tensor_beyond_the_limit(place: int) -> None:
    if place == 3 and _is_second():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
        torch.empty(2**30)


@pytest.mark.parametrize("hook", [_huge_object, _tensor_beyond_the_limit])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_out_of_memory_leaves_the_batch(num_ranks: int, hook: runs.Hook, config: Path, tmp_path: Path) -> None:
    codes, text = runs.link(config, tmp_path, hook=hook, num_ranks=num_ranks)
    assert codes[-1] == ExitCode.OUT_OF_MEMORY, text
    assert codes[0] not in (None, ExitCode.DONE, ExitCode.CONTINUE), text
    step = 4 // (3 - num_ranks)  # the fourth micro-batch of a rank
    ended = _ended(tmp_path)
    assert (ended["exit_code"], ended["step"]) == (ExitCode.OUT_OF_MEMORY, step), (ended, text)
    assert num_ranks == 1 or ended["reason"].startswith("rank 1: ")
    (record,) = read_records(tmp_path / "tiny" / OUT_OF_MEMORY)
    assert (record["step"], record["rank"], record["phase"]) == (step, num_ranks - 1, "forward")
    codes, text = runs.link(config, tmp_path, num_ranks=num_ranks)
    assert codes == [ExitCode.DONE] * num_ranks, text
    batch = runs.samples(tmp_path / "tiny")[step - 1][-1]  # the second of the step's two micro-batches
    assert record["sample_ids"] == batch and len(batch) == record["shapes"]["inputs"][0] > 0


# ---- no finite gradient

Change = Callable[[int], float]  # the number of a micro-batch of this rank -> what its loss is multiplied by


@pytest.fixture
def multiply_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    loss_fn = recipe.loss_fn

    def by(change: Change) -> None:
        place = -1

        def changed(*arguments: Any, **settings: Any) -> LossOutput:
            nonlocal place
            place += 1
            output = loss_fn(*arguments, **settings)
            return LossOutput(output.loss_sum * change(place), output.metrics)

        monkeypatch.setattr(recipe, "loss_fn", changed)

    return by


def _records(root: Path) -> list[dict[str, Any]]:
    return list(read_records(root / "tiny" / SKIPPED_UPDATES))


def test_what_is_not_finite_for_good_is_tried_again_and_ends_the_run(
    config: Path, tmp_path: Path, multiply_losses: Callable[[Change], None]
) -> None:
    multiply_losses(lambda place: float("nan") if _is_second() and place >= 4 else 1.0)
    codes, text = runs.link(config, tmp_path, "train.max_steps=20", "train.max_skipped_in_row=2", **TWO)
    assert codes == [ExitCode.DIVERGED] * 2, text
    assert "back to the checkpoint of step 4, with the data that follows" in text
    ended = _ended(tmp_path)
    assert ended["exit_code"] == ExitCode.DIVERGED and "it was tried from the last checkpoint" in ended["reason"]
    assert _steps(tmp_path) == [2, 4], "nothing is saved while nothing is learned"
    records = _records(tmp_path)
    assert [record["step"] for record in records] == [5, 6, 7, 5, 6, 7]
    trained = [r["micro_batches"] for r in read_records(tmp_path / "tiny" / "samples.jsonl")][4:]
    assert [record["micro_batches"] for record in records] == trained
    for record in records:
        of_first, of_second = record["loss_sums"]
        assert of_first > 0 and of_second is None, "which micro-batch it was"


def test_going_back_takes_other_data_and_goes_on(
    config: Path, whole: Path, tmp_path: Path, multiply_losses: Callable[[Change], None]
) -> None:
    multiply_losses(lambda place: float("nan") if 8 <= place < 14 else 1.0)  # steps 5 to 7
    codes, text = runs.link(config, tmp_path, "train.max_steps=10", "train.max_skipped_in_row=2")
    assert codes == [ExitCode.DONE], text
    run = tmp_path / "tiny"
    assert runs.samples(run)[:4] == runs.samples(whole)[:4]
    assert runs.samples(run)[4:] == runs.samples(whole)[7:13], "the data of steps 5 to 7 is passed over"
    assert len(runs.losses(run)) == 10 and None not in runs.losses(run)
    starts = [record["step"] for record in read_records(run / METRICS) if record["phase"] == "start"]
    assert starts == [0, 4]


def test_a_save_that_is_due_while_updates_are_skipped_is_made_up_for(
    config: Path, tmp_path: Path, multiply_losses: Callable[[Change], None]
) -> None:
    multiply_losses(lambda place: float("nan") if place in (7, 8) else 1.0)  # steps 4 and 5
    words = ("train.log_every_steps=3", "checkpoint.keep_last=9", "train.max_steps=8")
    codes, text = runs.link(config, tmp_path, *words)
    assert codes == [ExitCode.DONE], text
    assert _steps(tmp_path) == [2, 6, 8]
    assert [record["step"] for record in _records(tmp_path)] == [4, 5]


def test_a_loss_a_thousand_times_too_large_is_clipped(
    config: Path, tmp_path: Path, multiply_losses: Callable[[Change], None]
) -> None:
    multiply_losses(lambda place: 1000.0 if place == 2 and _is_second() else 1.0)
    codes, text = runs.link(config, tmp_path, "optim.name=sgd", "optim.lr=0.01", **TWO)
    assert codes == [ExitCode.DONE] * 2, text
    records = [record for record in read_records(tmp_path / "tiny" / METRICS) if record["phase"] == "train"]
    norms = [record["grad_norm"] for record in records]
    assert norms[2] > 50 * max(norms[:2] + norms[3:])
    losses = [record["loss"] for record in records]
    assert max(losses[3:]) < 2 * max(losses[:2])


# ---- a rank or a worker that dies


def test_a_killed_rank_is_named(config: Path, tmp_path: Path) -> None:
    def hook(place: int) -> None:
        if place == 3 and _is_second():
            os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    job = runs.begin(config, tmp_path, hook=hook, **TWO)
    codes = job.wait()
    assert time.monotonic() - began < 30
    assert codes[1] == -signal.SIGKILL and codes[0] == ExitCode.BUG, job.text
    pid = job.processes[1].pid
    assert f"process {pid}) died without a word" in _ended(tmp_path)["reason"], _ended(tmp_path)
    assert runs.link(config, tmp_path, **TWO)[0] == [ExitCode.DONE] * 2


def test_a_worker_that_crashes_ends_the_link_in_words(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = os.getpid()

    def crash(*arguments: Any, **settings: Any) -> None:
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(core.data.batch, "read_cut", crash)
    codes, text = runs.link(config, tmp_path, "loader.num_workers=1")
    assert codes == [ExitCode.BUG], text
    assert "DataLoader worker" in _ended(tmp_path)["reason"]


# ---- Ctrl-C


def test_ctrl_c_saves_and_says_the_command_that_goes_on(config: Path, tmp_path: Path) -> None:
    words = ["train.max_steps=150", "checkpoint.every_steps=null"]
    command = [sys.executable, "-m", "recipes.lmu_gigaspeech.train", "--config", str(config), *words]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATON", "SLURM"))}
    env = kept | {"BATON_RUNS": str(tmp_path / "my runs")}
    run = tmp_path / "my runs" / "tiny"
    with subprocess.Popen(command, cwd=runs.ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 100
        while not any(record["phase"] == "train" for record in read_records(run / METRICS)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        text = process.communicate(timeout=100)[0]
    assert process.returncode == ExitCode.CONTINUE, text
    ended = list(read_records(run / LEDGER))[-1]
    assert ended["reason"] == "signal SIGINT" and 0 < ended["step"] < 150
    assert 0 < ended["train_s"] < ended["wall_s"]
    assert [checkpoint.step for checkpoint in list_complete(run / CHECKPOINTS)] == [ended["step"]]

    said = text.splitlines()[-1]
    assert said.startswith(f"to go on from the last checkpoint, in {runs.ROOT}: "), text
    typed = said.partition(f"in {runs.ROOT}: ")[2]
    assert shlex.split(typed) == [f"BATON_RUNS={tmp_path / 'my runs'}", *command]
    again = subprocess.run(
        ["bash", "-c", f"{typed} train.max_steps={ended['step'] + 1}"],
        cwd=runs.ROOT, env=kept, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert again.returncode == ExitCode.DONE, again.stdout
    started = list(read_records(run / LEDGER))[-2]
    assert (started["event"], started["step"]) == ("started", ended["step"])
