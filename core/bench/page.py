"""summary.md: what a person reads first."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.bench import points
from core.bench.kpis import Figures
from core.bench.manifest import MANIFEST, read_table
from core.bench.plan import run_name
from core.bench.telemetry.recorder import GPU, HOST
from core.report.comparison import STYLE, line_colors

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


if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 12  # groups in a legend


def draw(runs: Sequence[Figures], *, total_steps: Mapping[str, int]) -> bytes:
    """Return a PNG of good runs."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(_label(run) for run in runs))
    colors = dict(zip(names, line_colors(len(names)), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(14, 9), dpi=110, layout="constrained")
        (speed, iterations), (eta, memory) = figure.subplots(2, 2)
        _draw_speed(speed, runs, colors)
        for run in runs:
            run_dir, color = Path(run["run_dir"]), colors[_label(run)]
            train = points.train_records(run_dir)
            timing = points.timing_points(train)
            steps, middle, high = ([point[name] for point in timing] for name in ("step", "iter_ms_p50", "iter_ms_p90"))
            iterations.plot(steps, middle, color=color, linewidth=1.5)
            iterations.fill_between(steps, middle, high, color=color, alpha=0.15)
            errors = points.eta_errors(train, total_steps=total_steps[run["mode"]])
            eta.plot([left_s / 60 for _, left_s in errors], [100 * off / left_s for off, left_s in errors], color=color)
            _draw_memory(memory, run_dir, color)
        _name(iterations, "Iteration, p50 and p90", x="step", y="ms")
        _name(eta, "How far off the time to the end was", x="minutes to the end", y="%")
        _name(memory, "Memory: host (line), GPU (dotted)", x="minute", y="GiB")
        eta.invert_xaxis()
        for ax in (iterations, memory):
            ax.set_ylim(bottom=0)
        image = BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def _draw_speed(ax: "Axes", runs: Sequence[Figures], colors: Mapping[str, Any]) -> None:
    """Draw a bar a group, a dot a run."""
    unit = "samples" if any(run.get("tail_samples_per_sec") is not None for run in runs) else "targets"
    for place, (label, color) in enumerate(colors.items()):
        speeds = [run.get(f"tail_{unit}_per_sec") for run in runs if _label(run) == label]
        known = [speed for speed in speeds if speed is not None]
        if known:
            ax.barh(place, sum(known) / len(known), color=color, alpha=0.6)
            ax.plot(known, [place] * len(known), "o", color=color, markersize=4)
    ax.set_yticks(range(len(colors)), list(colors), fontsize=9 if len(colors) <= MOST_NAMED else 6)
    ax.invert_yaxis()
    _name(ax, "Throughput at the end of a run", x=f"{unit} a second", y="")


def _draw_memory(ax: "Axes", run_dir: Path, color: Any) -> None:
    for file, column, to_gib, style in ((HOST, "rss_kib", 2**20, "-"), (GPU, "mem_used_mib", 2**10, ":")):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in read_table(run_dir / file):
            sample = (float(row["epoch_sec"]), float(row[column]) / to_gib)
            series.setdefault(row.get("gpu_index", ""), []).append(sample)
        for samples in series.values():
            begin = samples[0][0]
            ax.plot([(at - begin) / 60 for at, _ in samples], [held for _, held in samples], style, color=color)


def _name(ax: "Axes", title: str, *, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if not ax.has_data():
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color="grey")


def _label(run: Mapping[str, str]) -> str:
    return f"{run['mode']} {run['group']}"
