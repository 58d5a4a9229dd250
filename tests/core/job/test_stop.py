"""Stopping: signals and the deadline make a wish, early stopping counts validations."""

import os
import signal
import time
from pathlib import Path

import pytest

from core.job.stop import EarlyStop, EarlyStopConfig, StopConfig, StopSignal, end_of_slurm_job


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_signal_sets_a_flag_and_nothing_else(number: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in signal.Signals if one not in (signal.SIGKILL, signal.SIGSTOP)}
    try:
        stop = StopSignal(StopConfig(), deadline=None)
        stop.install()
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"signal {number.name}"
    finally:
        for one, handler in before.items():
            if handler is not None:
                signal.signal(one, handler)


def test_deadline_counts_with_the_margin() -> None:
    deadline = time.time() + 100
    assert StopSignal(StopConfig(margin_s=99), deadline=deadline).reason is None
    reason = StopSignal(StopConfig(margin_s=101), deadline=deadline).reason
    assert reason is not None and reason.startswith("time limit in ")


def test_a_job_in_slurm_learns_its_end_from_squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(
        '#!/bin/sh\n[ "$*" = "--noheader --jobs=7 --format=%e" ] && date -d @4000000000 "+$SLURM_TIME_FORMAT"'
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert end_of_slurm_job("7") == 4e9
    assert end_of_slurm_job("8") is None, "SLURM does not know the job"
    squeue.write_text("#!/bin/sh\necho NONE\n")
    assert end_of_slurm_job("7") is None, "the job has no limit"


def test_default_margin_is_three_saves_a_step_and_a_minute_up_to_a_tenth_of_the_link() -> None:
    stop = StopSignal(StopConfig(), deadline=time.time() + 4 * 3600)
    stop.observe(step_s=7, save_s=20)
    stop.observe(step_s=5, save_s=10)  # the longest counts
    assert stop.margin_s == pytest.approx(3 * 20 + 7 + 60)
    short = StopSignal(StopConfig(), deadline=time.time() + 100)
    assert short.margin_s == pytest.approx(10, abs=0.1)


def test_early_stop_waits_for_patience_validations_and_survives_a_resume() -> None:
    config = EarlyStopConfig(metric="valid_wer", patience=2, min_delta=0.01)
    early = EarlyStop(config)
    assert not early.observe({"valid_wer": 0.5})
    assert not early.observe({"valid_wer": 0.495})  # less than min_delta better
    resumed = EarlyStop(config)
    resumed.restore(early.state())
    assert resumed.observe({"valid_wer": 0.5})
    better = EarlyStop(config)
    better.restore(early.state())
    assert not better.observe({"valid_wer": 0.4})


def test_early_stop_names_the_metrics_there_are() -> None:
    early = EarlyStop(EarlyStopConfig(metric="valid_bleu"))
    with pytest.raises(ValueError, match=r"train.early_stop.metric=valid_bleu is not among .*valid_wer"):
        early.observe({"valid_wer": 0.5})
