"""What a run has measured, as points over its steps: from the metrics.jsonl and the train.log of one attempt."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from core.report.loggers import NAMES, hms
from core.rundir.files import METRICS, TRAIN_LOG
from core.rundir.metrics_log import read_metrics

PARTS: Mapping[str, str] = {  # a column, and the key of a record in seconds
    f"{name}_ms_{quantile}": f"{part}_s_{quantile}" for part, name in NAMES.items() for quantile in ("p50", "p90")
}
TIMING_COLUMNS = ("mode", "group", "repeat", "index", "step", *PARTS, "train_log")
ETA_COLUMNS = tuple("mode group repeat index step remain_steps eta_sec eta_hms eta_mode train_log".split())
RANK_LINE = re.compile(r"TimingRank step=(\d+) rank=(\d+) .* iter=(\S+)")

Point = dict[str, Any]


def train_records(run_dir: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run_dir / METRICS) if record["phase"] == "train"]


def epoch_s(record: Mapping[str, Any]) -> float:
    """Return when a record was written, in seconds since the epoch."""
    return datetime.fromisoformat(record["time"]).timestamp()


def timing_points(train: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the step, and the milliseconds of each part, of every record that has them."""
    timed = [record for record in train if record.get("step_s_p50") is not None]
    return [
        {"index": index, "step": record["step"], **{column: 1000 * record[key] for column, key in PARTS.items()}}
        for index, record in enumerate(timed)
    ]


def eta_points(train: Sequence[Mapping[str, Any]], *, total_steps: int) -> list[Point]:
    """Return what each record told of the time to the end."""
    told = [(record["step"], record["eta_s"]) for record in train if record.get("eta_s") is not None]
    return [
        {"index": index, "step": step, "remain_steps": total_steps - step, "eta_sec": eta_s, "eta_hms": hms(eta_s)}
        for index, (step, eta_s) in enumerate(told)
    ]


def eta_errors(train: Sequence[Mapping[str, Any]], *, total_steps: int) -> list[tuple[float, float]]:
    """Return (seconds that the time to the end was wrong by, the true seconds) of each record of a finished run.

    Records tell their time in whole seconds, so nothing is said about the last few.
    """
    if not train or train[-1]["step"] < total_steps:
        return []
    told = [
        (record["eta_s"], epoch_s(train[-1]) - epoch_s(record)) for record in train if record.get("eta_s") is not None
    ]
    return [(eta_s - left_s, left_s) for eta_s, left_s in told if left_s >= 5]


def rank_spreads_ms(run_dir: Path) -> list[float]:
    """Return how much longer the slowest rank took than the fastest, at each record; none with `rank_scope: rank0`."""
    path = run_dir / TRAIN_LOG
    if not path.exists():
        return []
    steps: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := RANK_LINE.fullmatch(line):
            steps.setdefault(match[1], {})[match[2]] = float(match[3])
    return [max(ranks.values()) - min(ranks.values()) for ranks in steps.values() if len(ranks) > 1]
