"""The lines of train.log, as CSRef's tools search for them."""

from pathlib import Path

from core.report.loggers import RankStep, TrainLog, hms
from core.timing.phases import TimingConfig

PARTS = {"data_wait": 0.001, "move": 0.002, "forward": 0.03, "backward": 0.04, "update": 0.005, "step": 0.08}
RECORD = {"phase": "train", "step": 20, "loss": 3.59571, "eta_s": 573.12, "eta_step_s": 0.0812, "eta_samples": 19}


def test_lines_of_a_record(tmp_path: Path) -> None:
    log = TrainLog(tmp_path / "train.log", TimingConfig(rank_scope="all", eta_mode="global_max"), total_steps=1200)
    log.write({"phase": "train", "step": 10, "loss": None, "eta_s": None})
    quantiles = {f"{name}_s_p{q}": seconds * q / 50 for name, seconds in PARTS.items() for q in (50, 90)}
    log.write(RECORD | quantiles)
    log.write({"phase": "valid", "step": 20, "valid_loss": 1.0})
    log.write_ranks([RankStep(0, 3.5, PARTS), RankStep(1, None, PARTS), RankStep(2, 1.0, {})], step=20)
    assert (tmp_path / "train.log").read_text().splitlines() == [
        "Step 10: Loss nan",
        "Step 20: Loss 3.5957",
        "Timing(window=100): data_wait_ms:p50=1.00 p90=1.80 | preprocess_ms:p50=2.00 p90=3.60 | "
        "fwd_ms:p50=30.00 p90=54.00 | bwd_ms:p50=40.00 p90=72.00 | step_ms:p50=5.00 p90=9.00 | "
        "iter_ms:p50=80.00 p90=144.00",
        "TimingETA step=20 remain_steps=1180 eta_sec=573.1 eta_hms=00:09:33 mode=global_max basis_iter_ms=81.20 "
        "samples=19",
        "TimingRank step=20 rank=0 loss=3.5000 data_wait=1.00 preprocess=2.00 fwd=30.00 bwd=40.00 step=5.00 iter=80.00",
        "TimingRank step=20 rank=1 loss=nan data_wait=1.00 preprocess=2.00 fwd=30.00 bwd=40.00 step=5.00 iter=80.00",
    ]


def test_hours_may_have_more_digits() -> None:
    assert [hms(seconds) for seconds in (0.4, 59.6, 3_661, 360_000)] == [
        "00:00:00",
        "00:01:00",
        "01:01:01",
        "100:00:00",
    ]
