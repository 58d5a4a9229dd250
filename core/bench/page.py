"""summary.md: what a person reads first."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.bench.kpis import Figures

GROUP_CELLS: Mapping[str, tuple[str, str]] = {
    "samples/s": ("tail_samples_per_sec_mean", ".1f"),
    "targets/s": ("tail_targets_per_sec_mean", ".1f"),
    "iteration, ms": ("tail_iter_ms_mean", ".2f"),
    "p90 / p50": ("iter_p90_over_p50_mean", ".2f"),
    "unstable": ("unstable_ratio", ".0%"),
    "stability": ("stability_score", ".2f"),
    "x baseline": ("speedup_vs_baseline", ".2f"),
    "ETA off by": ("eta_rel_error_p50", ".1%"),
    "rank spread p90, ms": ("rank_spread_ms_p90", ".2f"),
}
RUN_CELLS: Mapping[str, tuple[str, str]] = {
    "seconds": ("duration_sec", ""),
    "last step": ("last_step", ""),
    "samples/s": ("tail_samples_per_sec", ".1f"),
    "iteration, ms": ("tail_iter_ms_mean", ".2f"),
    "p90 / p50": ("iter_p90_over_p50", ".2f"),
    "loss": ("last_loss", ".4g"),
    "peak GiB": ("peak_memory_gib", ".2f"),
    "alerts": ("alerts", ""),
}


def page(
    content: Mapping[str, Any],
    order: Sequence[Figures],
    figures: Sequence[Figures],
    skipped: Sequence[Mapping[str, str]],
    *,
    picture: str | None,
    manifest: str,
) -> str:
    done = content["runs_by_status"]
    ended = ", ".join(f"{count} {status}" for status, count in done.items()) or "none"
    state = "**unfinished**" if content["is_partial"] else "finished"
    lines = [f"# Benchmark {content['suite']}", ""]
    lines += [f"{content['time']}, {state}: {content['runs_planned']} runs planned, ended: {ended}.", ""]
    if order:
        lines += [f"Best by {content['rank_by']}: **{content['best_group']}** (best_overrides.txt).", ""]
    lines += [f"![{content['suite']}]({picture})", ""] if picture else []
    lines += ["## Groups", ""]
    lines += _table(
        ["rank", "mode", "group", "good runs", *GROUP_CELLS],
        [
            [str(g["rank"]), g["mode"], g["group"], f"{g['ok_runs']} of {g['runs']}", *_cells(g, GROUP_CELLS)]
            for g in order
        ],
    )
    without = [group for group in content["groups"] if group["group"] not in content["ranking"]]
    lines += [f"Without a good run: {', '.join(group['group'] for group in without)}.", ""] if without else []
    lines += ["## Runs", ""]
    rows = [{**run, "alerts": f"{run['stall_alerts']} stalls, {run['spike_alerts']} spikes"} for run in figures]
    lines += _table(
        ["run", "attempt", "status", *RUN_CELLS],
        [[f"{r['mode']}-{r['group']}-r{r['repeat']}", r["attempt"], r["status"], *_cells(r, RUN_CELLS)] for r in rows],
    )
    lines += ["## Leaks", "", *_leaks(content), ""]
    if skipped:
        lines += ["## Left out", ""]
        lines += [f"- {s['mode']}-{s['group']}-r{s['repeat']}: {s['reason']} ({s['time']})" for s in skipped] + [""]
    lines += [f"Every column of every run: {manifest}.", ""]
    return "\n".join(lines)


def _leaks(content: Mapping[str, Any]) -> list[str]:
    """What leaks, and what could not be judged: a short run without a finding is no run without a leak."""
    lines = [f"- {leak}" for leak in content["leaks"]]
    if not lines:
        judged = content["leaks_judged"]
        lines = [f"None in {judged} series." if judged else "Nothing could be judged."]
    unknown = content["leaks_not_judged"]
    return [*lines, "", "Not judged:", "", *(f"- {one}" for one in unknown)] if unknown else lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["None yet.", ""]
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _cells(figures: Mapping[str, Any], cells: Mapping[str, tuple[str, str]]) -> list[str]:
    return [_cell(figures.get(column), form) for column, form in cells.values()]


def _cell(value: Any, form: str) -> str:
    if value is None or value == "":
        return ""
    return format(value, form) if isinstance(value, float) else str(value)
