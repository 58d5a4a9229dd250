"""summary.md: what a person reads first."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.bench.kpis import Figures
from core.bench.manifest import MANIFEST
from core.bench.plan import run_name

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
}


def page(
    content: Mapping[str, Any],
    order: Sequence[Figures],
    figures: Sequence[Figures],
    skipped: Sequence[Mapping[str, str]],
    *,
    picture: str | None,
) -> str:
    """Return the page of a summary's content, its groups from the best on, its runs and what was left out."""
    ended = ", ".join(f"{count} {status}" for status, count in content["runs_by_status"].items()) or "none"
    state = "**unfinished**" if content["is_partial"] else "finished"
    lines = [f"# Benchmark {content['suite']}", ""]
    lines += [f"{content['time']}, {state}: {content['runs_planned']} runs planned, ended: {ended}.", ""]
    if order:
        lines += [f"Best by {content['rank_by']}: **{content['best_group']}** (best_overrides.txt).", ""]
    lines += [f"![{content['suite']}]({picture})", ""] if picture else []
    groups = [
        [g["rank"], g["mode"], g["group"], f"{g['ok_runs']} of {g['runs']}", *_cells(g, GROUP_CELLS)] for g in order
    ]
    lines += ["## Groups", "", *_table(["rank", "mode", "group", "good runs", *GROUP_CELLS], groups)]
    without = [group["group"] for group in content["groups"] if group["group"] not in content["ranking"]]
    lines += [f"Without a good run: {', '.join(without)}.", ""] if without else []
    runs = [
        [run_name(r), r["attempt"], r["status"], *_cells(r, RUN_CELLS),
         f"{r['stall_alerts']} stalls, {r['spike_alerts']} spikes"] for r in figures
    ]  # fmt: skip
    lines += ["## Runs", "", *_table(["run", "attempt", "status", *RUN_CELLS, "alerts"], runs)]
    lines += ["## Leaks", "", *_leaks(content), ""]
    if skipped:
        lines += ["## Left out", "", *(f"- {run_name(s)}: {s['reason']} ({s['time']})" for s in skipped), ""]
    return "\n".join([*lines, f"Every column of every run: {MANIFEST}.", ""])


def _leaks(content: Mapping[str, Any]) -> list[str]:
    """Return what leaks, and what could not be judged: a short run without a finding is no run without a leak."""
    lines = [f"- {leak}" for leak in content["leaks"]]
    if not lines:
        judged = content["leaks_judged"]
        lines = [f"None in {judged} series." if judged else "Nothing could be judged."]
    unknown = content["leaks_not_judged"]
    return [*lines, "", "Not judged:", "", *(f"- {one}" for one in unknown)] if unknown else lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return ["None yet.", ""]
    cells = [columns, ["---"] * len(columns), *rows]
    return [*(f"| {' | '.join(map(str, row))} |" for row in cells), ""]


def _cells(figures: Mapping[str, Any], cells: Mapping[str, tuple[str, str]]) -> list[str]:
    values = [(figures.get(column), form) for column, form in cells.values()]
    return ["" if value is None else format(value, form if isinstance(value, float) else "") for value, form in values]
