"""A run that is cut in any way is bit for bit the run that was not; and any number of ranks trains the same."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.rundir.exit_codes import ExitCode
from core.rundir.files import LEDGER, METRICS, REPORT, SCORES
from core.rundir.whole_files import read_records
from tests.recipes import runs

BY_NUMBER_OF_RANKS = ("plan.micro_batches_per_step=4", "model.encoder.dropout=0", "optim.name=sgd", "optim.lr=0.1",
                      "optim.max_norm=0.5", "train.max_steps=4", "checkpoint.every_steps=null")  # fmt: skip


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    codes, text = runs.link(config, root, "train.validate_every_steps=3", report=True)
    assert codes == [ExitCode.DONE], text
    assert (root / "tiny" / REPORT).exists()
    return root / "tiny"


def _send(number: int) -> Callable[[int], None]:
    def hook(place: int) -> None:
        if place == 7:  # in the middle of step 4
            os.kill(os.getpid(), number)

    return hook


def _slowly(place: int) -> None:
    time.sleep(0.2)


CUTS: dict[str, dict[str, Any]] = {
    "link_steps": {"overrides": ("run.link_steps=2",), "code": ExitCode.CONTINUE, "links": 3},
    "SIGTERM": {"hook": _send(signal.SIGTERM), "code": ExitCode.CONTINUE, "links": 2},
    "SIGKILL": {"overrides": ("checkpoint.asynchronous=false",), "hook": _send(signal.SIGKILL), "code": -9, "links": 2},
    "deadline": {"overrides": ("stop.margin_s=0.3",), "hook": _slowly, "seconds": 1.5, "code": 75, "links": 2},
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("how", CUTS)
def test_a_cut_run_is_the_uncut_run(how: str, num_workers: int, config: Path, whole: Path, tmp_path: Path) -> None:
    cut = CUTS[how]
    common = ("train.validate_every_steps=3", f"loader.num_workers={num_workers}")
    for number in range(cut["links"] - 1):
        env = {"BATON_DEADLINE": str(time.time() + cut["seconds"])} if "seconds" in cut else {}
        codes, text = runs.link(config, tmp_path, *common, *cut.get("overrides", ()), env=env, hook=cut.get("hook"))
        assert codes == [cut["code"]], (number, text)
    codes, text = runs.link(config, tmp_path, *common, *cut.get("overrides", ()))
    assert codes == [ExitCode.DONE], text
    run = tmp_path / "tiny"
    started = [record["step"] for record in read_records(run / LEDGER) if record["event"] == "started"]
    assert len(started) == cut["links"] and (how == "deadline" or started[-1] in (2, 4)), started
    assert len(runs.losses(run)) == 6
    assert runs.losses(run) == runs.losses(whole)
    assert runs.samples(run) == runs.samples(whole)
    runs.assert_same_state(runs.state(run), runs.state(whole))
    assert (run / SCORES).read_text() == (whole / SCORES).read_text()


def test_a_finished_run_has_nothing_to_do(config: Path, whole: Path) -> None:
    before = {name: (whole / name).read_bytes() for name in (LEDGER, METRICS, SCORES)}
    codes, text = runs.link(config, whole.parent)
    assert codes == [ExitCode.DONE] and "nothing to do" in text
    assert before == {name: (whole / name).read_bytes() for name in before}


def test_any_number_of_ranks_trains_the_same(config: Path, tmp_path: Path) -> None:
    found = {}
    for num_ranks in (1, 2, 4):
        root = tmp_path / str(num_ranks)
        codes, text = runs.link(config, root, *BY_NUMBER_OF_RANKS, num_ranks=num_ranks)
        assert codes == [ExitCode.DONE] * num_ranks, text
        found[num_ranks] = root / "tiny"
    norms = [r["grad_norm"] for r in read_records(found[1] / METRICS) if r["phase"] == "train"]
    assert min(norms) > 0.5, "clipping must be active"
    for num_ranks in (2, 4):
        assert runs.samples(found[num_ranks]) == runs.samples(found[1])
        assert runs.losses(found[num_ranks]) == pytest.approx(runs.losses(found[1]), rel=5e-6)


def test_a_number_of_ranks_that_does_not_fit(config: Path, tmp_path: Path) -> None:
    codes, text = runs.link(config, tmp_path, *BY_NUMBER_OF_RANKS, num_ranks=3)
    assert codes == [ExitCode.CONFIG] * 3, text
    message = next(line for line in text.splitlines() if "micro_batches_per_step" in line)
    assert all(size in message for size in "124"), message
