"""What a run has measured, as points over its steps: from the metrics.jsonl and the train.log of one attempt."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from core.report.loggers import NAMES, hms
from core.rundir.files import METRICS, TRAIN_LOG
from core.rundir.metrics_log import read_metrics

TIMING_COLUMNS = (
    *("mode", "group", "repeat", "index", "step"),
    *(f"{name}_ms_{quantile}" for name in NAMES.values() for quantile in ("p50", "p90")),
    "train_log",
)
ETA_COLUMNS = tuple("mode group repeat index step remain_steps eta_sec eta_hms eta_mode train_log".split())
RANK_LINE = re.compile(r"TimingRank step=(\d+) rank=(\d+) .* iter=(\S+)")

Point = dict[str, Any]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The training records that count."""
    return [record for record in read_metrics(run_dir / METRICS) if record["phase"] == "train"]


def timing_points(train: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Step, and milliseconds of each part, of every record that has them."""
    points: list[Point] = []
    for record in train:
        if record.get("step_s_p50") is not None:
            parts = {
                f"{name}_ms_{quantile}": 1000 * record[f"{part}_s_{quantile}"]
                for part, name in NAMES.items()
                for quantile in ("p50", "p90")
            }
            points.append({"index": len(points), "step": record["step"], **parts})
    return points


def eta_points(train: Sequence[Mapping[str, Any]], *, total_steps: int, mode: str | None) -> list[Point]:
    """What each record told of the time to the end."""
    told = [record for record in train if record.get("eta_s") is not None]
    return [
        {
            "index": index,
            "step": record["step"],
            "remain_steps": total_steps - record["step"],
            "eta_sec": record["eta_s"],
            "eta_hms": hms(record["eta_s"]),
            "eta_mode": mode,
        }
        for index, record in enumerate(told)
    ]


def eta_errors(train: Sequence[Mapping[str, Any]], *, total_steps: int) -> list[tuple[float, float]]:
    """(seconds that the time to the end was wrong by, the true seconds) of each record of a finished run.

    Records tell their time in whole seconds, so nothing is said about the last few.
    """
    if not train or train[-1]["step"] < total_steps:
        return []
    end = datetime.fromisoformat(train[-1]["time"])
    found = []
    for record in train:
        left_s = (end - datetime.fromisoformat(record["time"])).total_seconds()
        if record.get("eta_s") is not None and left_s >= 5:
            found.append((record["eta_s"] - left_s, left_s))
    return found


def rank_spreads_ms(run_dir: Path) -> list[float]:
    """At each record the slowest rank's iteration less the fastest one's; empty with `timing_rank_scope: rank0`."""
    path = run_dir / TRAIN_LOG
    if not path.exists():
        return []
    steps: dict[int, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := RANK_LINE.fullmatch(line):
            steps.setdefault(int(match[1]), {})[int(match[2])] = float(match[3])
    return [max(ranks.values()) - min(ranks.values()) for ranks in steps.values() if len(ranks) > 1]
