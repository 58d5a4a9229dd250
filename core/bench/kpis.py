"""What the points of runs come to: figures of a run, of a group, and the order of the groups.

    tail_samples_per_sec = 1000 global_batch / mean of iter_ms_p50 over the last `tail_timing_points` points
    stability_score      = mean (p90 / p50 of iterations) x (1 + share of unstable runs); 1 is best
    unstable             iterations' p90 / p50 > 2, or the update's > 3

Ranks: `iter` by the tail's iteration, `throughput` by samples a second (groups may differ in their batch), `stability`
by the score, `balanced` by the mean of how many times worse than the best a group is in throughput and in stability.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, quantiles, stdev
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
RANKED_COLUMNS = ("rank", "rank_by", *GROUP_COLUMNS, "rank_iter", "rank_throughput", "rank_stability", "rank_balanced")
RANKINGS = ("iter", "throughput", "stability", "balanced")

Figures = dict[str, Any]


def run_figures(config: BenchConfig, row: Row) -> Figures:
    """The figures of one run, from its row and what it has written."""
    run_dir = Path(row["run_dir"])
    train = points.records(run_dir)
    timing = points.timing_points(train)
    tail, last = timing[-config.tail_timing_points :], train[-config.tail_timing_points :]
    errors = points.eta_errors(train, total_steps=config.max_steps)
    spreads = points.rank_spreads_ms(run_dir)
    copied = {column: row[column] for column in METRIC_COLUMNS if column in row}
    found: Figures = {**copied, **tail_ratios(timing, config.tail_timing_points), "timing_points": len(timing)}
    found["tail_targets_per_sec"] = _mean([r["targets_per_s"] for r in last if r.get("targets_per_s") is not None])
    found["rank_spread_ms_p90"] = quantile(spreads, 0.9)
    found["eta_abs_error_sec_p50"] = quantile([abs(error) for error, _ in errors], 0.5)
    found["eta_abs_error_sec_p90"] = quantile([abs(error) for error, _ in errors], 0.9)
    late = errors[len(errors) // 10 :]  # after a tenth of the run
    found["eta_rel_error_p50"] = quantile([abs(error) / left_s for error, left_s in late], 0.5)
    found["last_loss"] = train[-1].get("loss") if train else None
    found["peak_memory_gib"] = max((r["peak_memory_gib"] for r in train if "peak_memory_gib" in r), default=None)
    if tail:
        iter_ms = fmean(point["iter_ms_p50"] for point in tail)
        found["tail_iter_ms_mean"] = iter_ms
        found["tail_data_wait_share"] = fmean(point["data_wait_ms_p50"] for point in tail) / iter_ms
        if row["global_batch"]:
            found["tail_samples_per_sec"] = 1000 * int(row["global_batch"]) / iter_ms
    return found


def group_figures(runs: Sequence[Figures], *, baseline: str) -> list[Figures]:
    """The figures of every group over its good runs, in the order of the groups."""
    groups = [_group([run for run in runs if (run["mode"], run["group"]) == key]) for key in _keys(runs)]
    speeds = {group["group"]: group["tail_samples_per_sec_mean"] for group in groups}
    for group in groups:
        mine, base = group["tail_samples_per_sec_mean"], speeds.get(baseline)
        group["speedup_vs_baseline"] = mine / base if mine and base else None
    return groups


def ranked(groups: Sequence[Figures], *, by: str) -> list[Figures]:
    """The groups from the best on, with their rank in every order; without those that have no good run."""
    good = [group for group in groups if group["tail_iter_ms_mean"] is not None]
    costs = [_costs(group, good) for group in good]
    places = {ranking: sorted(range(len(good)), key=lambda i: costs[i][ranking]) for ranking in RANKINGS}
    found = []
    for rank, place in enumerate(places[by], start=1):
        ranks = {f"rank_{ranking}": places[ranking].index(place) + 1 for ranking in RANKINGS}
        found.append({"rank": rank, "rank_by": by, **good[place], **ranks})
    return found


def quantile(values: Sequence[float], share: float) -> float | None:
    """None of nothing; linear between neighbors."""
    if len(values) < 2:
        return values[0] if values else None
    return median(values) if share == 0.5 else quantiles(values, n=100, method="inclusive")[round(100 * share) - 1]


def _group(runs: Sequence[Figures]) -> Figures:
    good = [run for run in runs if run["status"] == OK and run.get("tail_iter_ms_mean") is not None]
    unstable = _mean([float(run["unstable_run_flag"] or 0) for run in good])
    ratio = _mean([run["iter_p90_over_p50"] for run in good if "iter_p90_over_p50" in run])
    figures: Figures = {
        "mode": runs[0]["mode"],
        "group": runs[0]["group"],
        "runs": len(runs),
        "ok_runs": len(good),
        "unstable_ratio": unstable,
        "stability_score": None if ratio is None or unstable is None else ratio * (1 + unstable),
        "iter_p90_over_p50_mean": ratio,
    }
    for column in ("tail_iter_ms_mean", "tail_samples_per_sec", "tail_targets_per_sec"):
        values = [run[column] for run in good if run.get(column) is not None]
        name = column.removesuffix("_mean")
        figures |= {f"{name}_mean": _mean(values), f"{name}_std": stdev(values) if len(values) > 1 else None}
    for column in ("rank_spread_ms_p90", "eta_abs_error_sec_p50", "eta_rel_error_p50", "peak_memory_gib"):
        figures[column] = _mean([run[column] for run in good if run.get(column) is not None])
    return figures


def _costs(group: Figures, groups: Sequence[Figures]) -> Mapping[str, float]:
    """What each ranking sorts by; less is better."""
    iter_ms = group["tail_iter_ms_mean"]
    slowness = 1 / group["tail_samples_per_sec_mean"] if group["tail_samples_per_sec_mean"] else iter_ms
    stability = group["stability_score"] if group["stability_score"] is not None else math.inf
    fastest = max((one["tail_samples_per_sec_mean"] or 0.0 for one in groups), default=0.0)
    steadiest = min((one["stability_score"] or math.inf for one in groups), default=math.inf)
    times_slower = fastest * slowness if fastest else iter_ms / min(one["tail_iter_ms_mean"] for one in groups)
    times_shakier = stability / steadiest if steadiest < math.inf else 1.0
    balanced = (times_slower + times_shakier) / 2
    return {"iter": iter_ms, "throughput": slowness, "stability": stability, "balanced": balanced}


def _keys(runs: Sequence[Figures]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run["mode"], run["group"]) for run in runs))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
