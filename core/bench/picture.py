"""summary.png: throughput of the groups, iterations over the steps, how well the end was foretold, and memory."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.bench import points
from core.bench.attempt import OK
from core.bench.kpis import Figures
from core.bench.manifest import Row, read_table
from core.bench.telemetry.recorder import GPU, HOST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 12  # groups in a legend
Runs = Sequence[tuple[Row, Figures]]


def draw(rows: Sequence[Row], figures: Sequence[Figures], *, total_steps: Mapping[str, int]) -> bytes:
    """A PNG of the good runs."""
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    runs = [(row, own) for row, own in zip(rows, figures, strict=True) if row["status"] == OK]
    groups = list(dict.fromkeys(_label(row) for row, _ in runs))
    palette = colormaps["tab10" if len(groups) <= 10 else "turbo"]
    colors = {name: palette(n if len(groups) <= 10 else n / (len(groups) - 1)) for n, name in enumerate(groups)}
    with rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(14, 9), dpi=110, layout="constrained")
        (speed, iterations), (eta, memory) = figure.subplots(2, 2)
        _draw_speed(speed, runs, colors)
        for row, _ in runs:
            run_dir, color = Path(row["run_dir"]), colors[_label(row)]
            train = points.records(run_dir)
            _draw_iterations(iterations, points.timing_points(train), color)
            _draw_eta(eta, points.eta_errors(train, total_steps=total_steps[row["mode"]]), color)
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


def _draw_speed(ax: "Axes", runs: Runs, colors: Mapping[str, Any]) -> None:
    """A bar a group, a dot a run."""
    for place, (label, color) in enumerate(colors.items()):
        own = [figures for row, figures in runs if _label(row) == label]
        speeds = [one["tail_samples_per_sec"] for one in own if one.get("tail_samples_per_sec") is not None]
        if speeds:
            ax.barh(place, sum(speeds) / len(speeds), color=color, alpha=0.6)
            ax.plot(speeds, [place] * len(speeds), "o", color=color, markersize=4)
    ax.set_yticks(range(len(colors)), list(colors), fontsize=9 if len(colors) <= MOST_NAMED else 6)
    ax.invert_yaxis()
    _name(ax, "Throughput at the end of a run", x="samples a second", y="")


def _draw_iterations(ax: "Axes", timing: Sequence[points.Point], color: Any) -> None:
    steps = [point["step"] for point in timing]
    middle, high = ([point[f"iter_ms_{name}"] for point in timing] for name in ("p50", "p90"))
    ax.plot(steps, middle, color=color, linewidth=1.5)
    ax.fill_between(steps, middle, high, color=color, alpha=0.15)


def _draw_eta(ax: "Axes", errors: Sequence[tuple[float, float]], color: Any) -> None:
    ax.plot([left_s / 60 for _, left_s in errors], [100 * off / left_s for off, left_s in errors], color=color)


def _draw_memory(ax: "Axes", run_dir: Path, color: Any) -> None:
    for file, column, to_gib, style in ((HOST, "rss_kib", 2**20, "-"), (GPU, "mem_used_mib", 2**10, ":")):
        by_place: dict[str, list[tuple[float, float]]] = {}
        for row in read_table(run_dir / file):
            sample = (float(row["epoch_sec"]), float(row[column]) / to_gib)
            by_place.setdefault(row.get("gpu_index", ""), []).append(sample)
        for samples in by_place.values():
            begin = samples[0][0]
            ax.plot([(at - begin) / 60 for at, _ in samples], [held for _, held in samples], style, color=color)


def _name(ax: "Axes", title: str, *, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if not ax.has_data():
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color="grey")


def _label(row: Mapping[str, str]) -> str:
    return f"{row['mode']} {row['group']}"
