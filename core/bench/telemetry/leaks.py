"""Does a run leak? Memory of the GPUs and of its processes on the host, and the time of its iterations, over its life.

The first fifth is left out as warm-up. A series leaks when it rises faster than its threshold (least squares, less
twice the standard error, so that noise does not count), when its last tenth lies further above its first than its
threshold, or when it rises slower but steadily: a straight line explains nearly all of it. Each run is looked at alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from core.bench import points
from core.bench.manifest import read_table
from core.bench.settings import LeakConfig
from core.bench.telemetry.recorder import GPU, HOST

LEAST_POINTS = 8
LEAK, FLAT, TOO_SHORT = "leak", "flat", "too short"


@dataclass(frozen=True)
class Finding:
    """What one series of a run shows. For memory `slope` is MiB a minute and `drift` MiB; for iterations shares."""

    series: str
    verdict: str
    points: int
    minutes: float
    slope: float
    r2: float
    drift: float
    reason: str = ""


def diagnose(run_dir: Path, config: LeakConfig) -> list[Finding]:
    """Every series that a run has."""
    train = points.records(run_dir)
    findings = []
    by_gpu: dict[str, list[tuple[float, float]]] = {}
    for row in read_table(run_dir / GPU):
        if _is_training(row, train):
            by_gpu.setdefault(row["gpu_index"], []).append((float(row["epoch_sec"]), float(row["mem_used_mib"])))
    for index, samples in sorted(by_gpu.items()):
        findings.append(
            _memory(f"gpu {index} memory", samples, config, slope=config.gpu_mib_per_min, drift=config.gpu_drift_mib)
        )
    host = [row for row in read_table(run_dir / HOST) if _is_training(row, train)]
    held = [(float(row["epoch_sec"]), float(row["rss_kib"]) / 1024) for row in host]
    if held:
        findings.append(
            _memory("host memory", held, config, slope=config.host_mib_per_min, drift=config.host_drift_mib)
        )
    timed = [record for record in train if record.get("step_s_p50") is not None]
    if timed:
        findings.append(_iterations(timed, config))
    return findings


def _is_training(sample: Mapping[str, str], train: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sample lies between the first and the last record: before, libraries are loaded; after, reports."""
    if not train:
        return True
    begin, end = _epoch_s(train[0]), _epoch_s(train[-1])
    return begin <= float(sample["epoch_sec"]) <= end + 1  # records have whole seconds


def _epoch_s(record: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(record["time"]).timestamp()


def as_records(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]


def _memory(
    name: str, samples: Sequence[tuple[float, float]], config: LeakConfig, *, slope: float, drift: float
) -> Finding:
    times_s, values = np.array(samples[int(len(samples) * config.warmup_share) :], dtype=np.float64).T
    minutes = (times_s - times_s[0]) / 60
    if len(values) < LEAST_POINTS or minutes[-1] < config.min_minutes:
        return Finding(name, TOO_SHORT, len(values), round(float(minutes[-1]), 2), 0.0, 0.0, 0.0)
    found_slope, error, r2 = _line(minutes, values)
    found_drift = _drift(values)
    reasons = []
    if found_slope - 2 * error > slope:
        reasons.append(f"rises {found_slope:.1f} MiB/min, more than {slope:g}")
    elif found_slope > config.steady_mib_per_min and r2 > config.steady_r2:
        reasons.append(f"rises {found_slope:.1f} MiB/min as straight as a line (R2 {r2:.2f})")
    if found_drift > drift:
        reasons.append(f"ends {found_drift:.0f} MiB higher, more than {drift:g}")
    measured = (len(values), round(float(minutes[-1]), 2), round(found_slope, 3), round(r2, 4), round(found_drift, 2))
    return Finding(name, LEAK if reasons else FLAT, *measured, "; ".join(reasons))


def _iterations(timed: Sequence[Mapping[str, Any]], config: LeakConfig) -> Finding:
    kept = timed[int(len(timed) * config.warmup_share) :]
    values = np.array([record["step_s_p50"] for record in kept])
    minutes = round((_epoch_s(kept[-1]) - _epoch_s(kept[0])) / 60, 2)
    if len(values) < LEAST_POINTS or minutes < config.min_minutes:
        return Finding("iteration", TOO_SHORT, len(values), minutes, 0.0, 0.0, 0.0)
    slope, _, r2 = _line(np.linspace(0, 1, len(values)), values / values.mean())
    drift = _drift(values) / float(values.mean())
    reason = f"ends {drift:.0%} slower, more than {config.iter_drift:.0%}" if drift > config.iter_drift else ""
    measured = (len(values), minutes, round(slope, 4), round(r2, 4), round(drift, 4))
    return Finding("iteration", LEAK if reason else FLAT, *measured, reason)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope of the least squares line, its standard error, and how much of the variance it explains."""
    centered_x, centered_y = x - x.mean(), y - y.mean()
    slope = float((centered_x * centered_y).sum() / (centered_x**2).sum())
    left = float(((centered_y - slope * centered_x) ** 2).sum())
    total = float((centered_y**2).sum())
    error = (left / (len(x) - 2) / float((centered_x**2).sum())) ** 0.5
    return slope, error, 1 - left / total if total > 0 else 0.0


def _drift(values: np.ndarray) -> float:
    """The median of the last tenth less that of the first."""
    size = max(1, len(values) // 10)
    return float(np.median(values[-size:]) - np.median(values[:size]))


def not_judged(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """One line a run of which something was too short to be judged, or of which nothing was measured."""
    lines = []
    for name, found in findings.items():
        series = [finding.series for finding in found if finding.verdict == TOO_SHORT]
        if series:
            lines.append(f"{name}: {', '.join(series)}: {TOO_SHORT}")
        elif not found:
            lines.append(f"{name}: nothing was measured")
    return lines


def leaking(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """One line a leak, with its run."""
    return [
        f"{name}: {finding.series} {finding.reason}"
        for name, found in findings.items()
        for finding in found
        if finding.verdict == LEAK
    ]
