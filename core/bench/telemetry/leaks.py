"""Does a run leak? Memory of the GPUs and of its processes on the host, and the time of its iterations, over its life.

The first fifth is left out as warm-up. A series leaks when it rises faster than its threshold (least squares, less
twice the standard error, so that noise does not count), when its last tenth lies further above its first than its
threshold, or when it rises slower but steadily: a straight line explains nearly all of it. Each run is looked at alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from core.bench.manifest import read_table
from core.bench.points import epoch_s, train_records
from core.bench.settings import LeakConfig
from core.bench.telemetry.recorder import GPU, HOST

LEAST_POINTS = 8
LEAK, FLAT, TOO_SHORT = "leak", "flat", "too short"
HOST_MEMORY = "host memory"


@dataclass(frozen=True)
class LeakFinding:
    """What one series of a run shows. For memory `slope` is MiB a minute and `drift` MiB; for iterations shares."""

    series: str
    verdict: str
    points: int
    minutes: float
    slope: float = 0.0
    r2: float = 0.0
    drift: float = 0.0
    reason: str = ""


Reason = Callable[[float, float, float, float], str]  # of slope, its standard error, R2 and drift; empty: no leak


def diagnose(run_dir: Path, config: LeakConfig) -> list[LeakFinding]:
    """Judge every series that a run has, between its first record and its last."""
    train = train_records(run_dir)
    # Before the first record libraries are loaded, after the last one reports are drawn.
    begin, end = (epoch_s(train[0]), epoch_s(train[-1]) + 1) if train else (0.0, np.inf)  # they have whole seconds
    held: dict[str, list[tuple[float, float]]] = {}
    for file, column, to_mib in ((GPU, "mem_used_mib", 1), (HOST, "rss_kib", 1024)):
        for row in read_table(run_dir / file):
            if begin <= (at := float(row["epoch_sec"])) <= end:
                series = f"gpu {row['gpu_index']} memory" if file == GPU else HOST_MEMORY
                held.setdefault(series, []).append((at, float(row[column]) / to_mib))
    findings = [_judge(name, held[name], config, partial(_memory_leak, name, config)) for name in sorted(held)]
    timed = [(epoch_s(record), record["step_s_p50"]) for record in train if record.get("step_s_p50") is not None]
    if timed:
        findings.append(_judge("iteration", timed, config, partial(_slowing, config), in_shares=True))
    return findings


def not_judged(findings: Mapping[str, Sequence[LeakFinding]]) -> list[str]:
    """Return a line a run of which something was too short to be judged, or of which nothing was measured."""
    lines = []
    for name, found in findings.items():
        series = [finding.series for finding in found if finding.verdict == TOO_SHORT]
        if series:
            lines.append(f"{name}: {', '.join(series)}: {TOO_SHORT}")
        elif not found:
            lines.append(f"{name}: nothing was measured")
    return lines


def leaking(findings: Mapping[str, Sequence[LeakFinding]]) -> list[str]:
    """Return a line a leak, with its run."""
    return [f"{name}: {f.series} {f.reason}" for name, found in findings.items() for f in found if f.verdict == LEAK]


def _judge(
    series: str,
    samples: Sequence[tuple[float, float]],
    config: LeakConfig,
    reason_of: Reason,
    *,
    in_shares: bool = False,
) -> LeakFinding:
    """Judge (seconds, value) samples. `in_shares`: as shares of their mean over the share of the run."""
    from scipy.stats import linregress

    times_s, values = np.array(samples[int(len(samples) * config.warmup_share) :]).T
    minutes = (times_s - times_s[0]) / 60
    measured = (len(values), round(float(minutes[-1]), 2))
    if len(values) < LEAST_POINTS or minutes[-1] < config.min_minutes:
        return LeakFinding(series, TOO_SHORT, *measured)
    if in_shares:
        minutes, values = np.linspace(0, 1, len(values)), values / values.mean()
    line, size = linregress(minutes, values), max(1, len(values) // 10)
    drift = float(np.median(values[-size:]) - np.median(values[:size]))
    slope, error, r2 = float(line.slope), float(line.stderr), float(line.rvalue**2)
    reason = reason_of(slope, error, r2, drift)
    rounded = (round(slope, 4), round(r2, 4), round(drift, 4))
    return LeakFinding(series, LEAK if reason else FLAT, *measured, *rounded, reason)


def _memory_leak(series: str, config: LeakConfig, slope: float, error: float, r2: float, drift: float) -> str:
    steepest, highest = (
        (config.host_mib_per_min, config.host_drift_mib)
        if series == HOST_MEMORY
        else (config.gpu_mib_per_min, config.gpu_drift_mib)
    )
    reasons = []
    if slope - 2 * error > steepest:
        reasons.append(f"rises {slope:.1f} MiB/min, more than {steepest:g}")
    elif slope > config.steady_mib_per_min and r2 > config.steady_r2:
        reasons.append(f"rises {slope:.1f} MiB/min as straight as a line (R2 {r2:.2f})")
    if drift > highest:
        reasons.append(f"ends {drift:.0f} MiB higher, more than {highest:g}")
    return "; ".join(reasons)


def _slowing(config: LeakConfig, slope: float, error: float, r2: float, drift: float) -> str:
    return f"ends {drift:.0%} slower, more than {config.iter_drift:.0%}" if drift > config.iter_drift else ""
