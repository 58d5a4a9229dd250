"""Two ranks do together what one of them has reason to do: nobody waits for a rank that has left or never comes."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from core.rundir.exit_codes import ExitCode
from core.rundir.files import BAD_SAMPLES, LEDGER, METRICS, PREDICTIONS, REPORT, SAMPLES, SCORES, TENSORBOARD
from core.rundir.whole_files import read_json, read_records
from tests.recipes import runs

TWO = {"num_ranks": 2}
CTC_LOSS = F.ctc_loss
VALIDATED = ("train.validate_every_steps=2", "checkpoint.every_steps=null")


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs, with everything that only the first rank writes."""
    root = tmp_path_factory.mktemp("whole")
    extras = ("loggers.tensorboard=true", "checkpoint.keep_best.metric=valid_wer", "checkpoint.keep_best.mode=min")
    codes, text = runs.link(config, root, *VALIDATED, *extras, report=True, **TWO)
    assert codes == [ExitCode.DONE] * 2, text
    return root / "tiny"


def test_what_only_the_first_rank_writes_is_written_once(whole: Path) -> None:
    phases = [(record["phase"], record["step"]) for record in read_records(whole / METRICS)]
    trained = [("train", step) for step in range(1, 7)]
    assert sorted(phases) == sorted([("start", 0), *trained, *(("valid", step) for step in (2, 4, 6))])
    events = [record["event"] for record in read_records(whole / LEDGER)]
    assert events == ["started", "ended"]
    test = [record["sample_id"] for record in read_records(whole / PREDICTIONS) if record["split"] == "test"]
    assert len(test) == len(set(test)) == read_json(whole / SCORES)["test/utterances"] == 2
    assert len(list(read_records(whole / SAMPLES))) == 6
    assert (whole / REPORT).exists() and len(list((whole / TENSORBOARD).iterdir())) == 1


def test_nan_on_one_rank_skips_the_update_on_both(config: Path, tmp_path: Path) -> None:
    codes, text = runs.link(config, tmp_path, hook=_nan_on_second(at={2}), **TWO)
    assert codes == [ExitCode.DONE] * 2, text
    records = [record for record in read_records(tmp_path / "tiny" / METRICS) if record["phase"] == "train"]
    assert [record["skipped_updates"] for record in records] == [0, 0, 1, 1, 1, 1]  # so far
    assert [record["loss"] is None for record in records] == [False, False, True, False, False, False]


def test_nan_on_one_rank_for_good_ends_both(config: Path, tmp_path: Path) -> None:
    hook = _nan_on_second(at=set(range(2, 100)))
    codes, text = runs.link(config, tmp_path, "train.max_skipped_in_row=1", hook=hook, **TWO)
    assert codes == [ExitCode.DIVERGED] * 2, text
    ended = list(read_records(tmp_path / "tiny" / LEDGER))[-1]
    assert ended["exit_code"] == ExitCode.DIVERGED and "no finite gradient" in ended["reason"]


def test_both_stop_early_at_the_same_validation(config: Path, tmp_path: Path) -> None:
    early = ("train.early_stop.metric=valid_wer", "train.early_stop.patience=1", "optim.lr=1e-6")
    codes, text = runs.link(config, tmp_path, *VALIDATED, *early, **TWO)
    assert codes == [ExitCode.DONE] * 2, text
    assert "stopped at step 4: no improvement" in text
    assert read_json(tmp_path / "tiny" / SCORES)["step"] == 4


@pytest.mark.parametrize("place", [1, 2], ids=["before a validation", "before a step"])
def test_a_signal_to_one_rank_stops_both_at_one_step(place: int, config: Path, whole: Path, tmp_path: Path) -> None:
    def hook(now: int) -> None:
        if _is_second() and now == place:
            os.kill(os.getpid(), signal.SIGTERM)

    codes, text = runs.link(config, tmp_path, *VALIDATED, hook=hook, **TWO)
    assert codes == [ExitCode.CONTINUE] * 2, text
    ended = list(read_records(tmp_path / "tiny" / LEDGER))[-1]
    assert (ended["step"], ended["reason"]) == (place + 1, "signal SIGTERM")
    codes, text = runs.link(config, tmp_path, *VALIDATED, **TWO)
    assert codes == [ExitCode.DONE] * 2, text
    assert runs.losses(tmp_path / "tiny") == runs.losses(whole)


def test_an_exception_on_one_rank_keeps_the_other_waiting_no_longer(config: Path, tmp_path: Path) -> None:
    def hook(place: int) -> None:
        if _is_second() and place == 2:
            raise LookupError("only here")

    codes, text = runs.link(config, tmp_path, hook=hook, **TWO)
    assert codes[1] == ExitCode.BUG and codes[0] not in (None, ExitCode.DONE, ExitCode.CONTINUE), (codes, text)
    assert "only here" in text


def test_what_the_first_rank_refuses_both_refuse(config: Path, tmp_path: Path) -> None:
    assert runs.link(config, tmp_path, "run.link_steps=2", **TWO)[0] == [ExitCode.CONTINUE] * 2
    codes, text = runs.link(config, tmp_path, "model.encoder.dim=32", **TWO)
    assert codes == [ExitCode.CONFIG] * 2, text


def test_too_many_bad_samples_end_both(tmp_path: Path) -> None:
    good = runs.demo_cuts("train", 12)
    missing = [runs.of_file(cut, tmp_path / f"missing-{place}.wav") for place, cut in enumerate(good)]
    config = runs.write_config(tmp_path / "corpus", good + missing)
    codes, text = runs.link(config, tmp_path / "runs", "train.max_steps=30", **TWO)
    assert codes == [ExitCode.DATA] * 2, text
    listed = [record["sample_id"] for record in read_records(tmp_path / "runs" / "tiny" / BAD_SAMPLES)]
    assert len(listed) == len(set(listed)) > 10


def _is_second() -> bool:
    return os.environ["RANK"] == "1"


def _nan_on_second(*, at: set[int]) -> runs.Hook:
    """Rank 1's loss is NaN in the micro-batches `at`."""

    def hook(place: int) -> None:
        F.ctc_loss = _nan_loss if _is_second() and place in at else CTC_LOSS

    return hook


def _nan_loss(*arguments: Any, **settings: Any) -> Tensor:
    return CTC_LOSS(*arguments, **settings) * float("nan")
