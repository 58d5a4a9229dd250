"""What the points of runs come to: figures of a run, of a group, and the order of the groups.

    tail_samples_per_sec = 1000 global_batch / mean of iter_ms_p50 over the last `tail_timing_points` points
    stability_score      = mean (p90 / p50 of iterations) x (1 + share of unstable runs); 1 is best
    unstable             iterations' p90 / p50 > 2, or the update's > 3

Ranks: `iter` by the tail's iteration, `throughput` by samples a second (groups may differ in their batch), or targets a
second where batches hold as many samples as fit, `stability` by the score, `balanced` by the mean of how many times
worse than the best a group is in throughput and in stability.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

from core.bench import points
from core.bench.attempt import OK
from core.bench.manifest import Row
from core.bench.row import tail_ratios
from core.bench.settings import BenchConfig

METRIC_COLUMNS = tuple(
    "mode group repeat attempt status exit_code duration_sec last_step timing_points tail_iter_ms_mean "
    "tail_samples_per_sec tail_targets_per_sec tail_data_wait_share iter_p90_over_p50 data_p90_over_p50 "
    "step_p90_over_p50 unstable_run_flag rank_spread_ms_p90 eta_abs_error_sec_p50 eta_abs_error_sec_p90 "
    "eta_rel_error_p50 last_loss peak_memory_gib stall_alerts spike_alerts run_dir".split()
)
GROUP_COLUMNS = tuple(
    "mode group runs ok_runs unstable_ratio tail_iter_ms_mean tail_iter_ms_std tail_samples_per_sec_mean "
    "tail_samples_per_sec_std tail_targets_per_sec_mean iter_p90_over_p50_mean stability_score rank_spread_ms_p90 "
    "eta_abs_error_sec_p50 eta_rel_error_p50 peak_memory_gib speedup_vs_baseline".split()
)
RANKINGS = ("iter", "throughput", "stability", "balanced")
RANKED_COLUMNS = ("rank", "rank_by", *GROUP_COLUMNS, *(f"rank_{ranking}" for ranking in RANKINGS))

Figures = dict[str, Any]


def run_figures(config: BenchConfig, row: Row) -> Figures:
    """Return the figures of one run, from its row and what it has written."""
    run_dir = Path(row["run_dir"])
    train = points.train_records(run_dir)
    timing = points.timing_points(train)
    tail, last = timing[-config.tail_timing_points :], train[-config.tail_timing_points :]
    errors = points.eta_errors(train, total_steps=config.max_steps)
    late = errors[len(errors) // 10 :]  # after a tenth of the run
    found: Figures = {
        **{column: row[column] for column in METRIC_COLUMNS if column in row},
        **tail_ratios(timing, config.tail_timing_points),
        "timing_points": len(timing),
        "tail_targets_per_sec": _mean(record.get("targets_per_s") for record in last),
        "rank_spread_ms_p90": quantile(points.rank_spreads_ms(run_dir), 90),
        "eta_abs_error_sec_p50": quantile([abs(error) for error, _ in errors], 50),
        "eta_abs_error_sec_p90": quantile([abs(error) for error, _ in errors], 90),
        "eta_rel_error_p50": quantile([abs(error) / left_s for error, left_s in late], 50),
        "last_loss": train[-1].get("loss") if train else None,
        "peak_memory_gib": max((r["peak_memory_gib"] for r in train if "peak_memory_gib" in r), default=None),
    }
    if tail:
        iter_ms = fmean(point["iter_ms_p50"] for point in tail)
        found["tail_iter_ms_mean"] = iter_ms
        found["tail_data_wait_share"] = fmean(point["data_wait_ms_p50"] for point in tail) / iter_ms
        if row["global_batch"]:
            found["tail_samples_per_sec"] = 1000 * int(row["global_batch"]) / iter_ms
    return found


def group_figures(runs: Sequence[Figures], *, baseline: str) -> list[Figures]:
    """Return the figures of every group over its good runs, in the order of the groups."""
    keys = dict.fromkeys((run["mode"], run["group"]) for run in runs)
    groups = [_group([run for run in runs if (run["mode"], run["group"]) == key]) for key in keys]
    speeds = {group["group"]: _speed(group) for group in groups}
    for group in groups:
        mine, base = _speed(group), speeds.get(baseline)
        group["speedup_vs_baseline"] = mine / base if mine and base else None
    return groups


def ranked(groups: Sequence[Figures], *, by: str) -> list[Figures]:
    """Return the groups from the best on, with their rank in every order; without those that have no good run."""
    good = [group for group in groups if group["ok_runs"]]
    costs = _costs(good)
    places = {ranking: sorted(range(len(good)), key=lambda i: costs[i][ranking]) for ranking in RANKINGS}
    found = []
    for rank, place in enumerate(places[by], start=1):
        ranks = {f"rank_{ranking}": places[ranking].index(place) + 1 for ranking in RANKINGS}
        found.append({"rank": rank, "rank_by": by, **good[place], **ranks})
    return found


def quantile(values: Sequence[float], percent: int) -> float | None:
    """Return a percentile, linear between neighbors; None of nothing."""
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _group(runs: Sequence[Figures]) -> Figures:
    good = [run for run in runs if run["status"] == OK and run.get("tail_iter_ms_mean") is not None]
    unstable = _mean(float(run["unstable_run_flag"] or 0) for run in good)
    ratio = _mean(run.get("iter_p90_over_p50") for run in good)
    speeds = [run["tail_samples_per_sec"] for run in good if run.get("tail_samples_per_sec") is not None]
    iters_ms = [run["tail_iter_ms_mean"] for run in good]
    means = ("rank_spread_ms_p90", "eta_abs_error_sec_p50", "eta_rel_error_p50", "peak_memory_gib")
    return {
        "mode": runs[0]["mode"],
        "group": runs[0]["group"],
        "runs": len(runs),
        "ok_runs": len(good),
        "unstable_ratio": unstable,
        "stability_score": None if ratio is None or unstable is None else ratio * (1 + unstable),
        "iter_p90_over_p50_mean": ratio,
        "tail_iter_ms_mean": _mean(iters_ms),
        "tail_iter_ms_std": stdev(iters_ms) if len(iters_ms) > 1 else None,
        "tail_samples_per_sec_mean": _mean(speeds),
        "tail_samples_per_sec_std": stdev(speeds) if len(speeds) > 1 else None,
        "tail_targets_per_sec_mean": _mean(run.get("tail_targets_per_sec") for run in good),
        **{column: _mean(run.get(column) for run in good) for column in means},
    }


def _costs(groups: Sequence[Figures]) -> list[Mapping[str, float]]:
    """Return what each ranking sorts by; less is better."""
    speeds = [_speed(group) or 1 / group["tail_iter_ms_mean"] for group in groups]
    shaky = [math.inf if group["stability_score"] is None else group["stability_score"] for group in groups]
    fastest, steadiest = max(speeds, default=0.0), min(shaky, default=math.inf)
    return [
        {
            "iter": group["tail_iter_ms_mean"],
            "throughput": -speed,
            "stability": score,
            "balanced": fastest / speed + (score / steadiest if steadiest < math.inf else 1.0),
        }
        for group, speed, score in zip(groups, speeds, shaky, strict=True)
    ]


def _speed(group: Figures) -> float | None:
    """Return samples a second; targets a second where batches hold as many samples as fit."""
    speed: float | None = group["tail_samples_per_sec_mean"] or group["tail_targets_per_sec_mean"]
    return speed


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known; None of nothing."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
