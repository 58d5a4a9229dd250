"""The picture of a run: losses, error rates, speed and health over the steps, with the links marked."""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 500  # of a curve: more cannot be told apart
COLORS = ("#1f5fa8", "#d1495b", "#2a9d6f", "#8a5aa8")
GREY = "#8a8f98"
Record = Mapping[str, Any]


def draw(records: Sequence[Record], *, heading: tuple[str, str] | None = None) -> bytes:
    """Return a PNG of the records of metrics.jsonl, under a title and a line of facts."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 16,  # room for the names of the links
        "axes.grid": True,
        "grid.color": "#e6e8ec",
        "xtick.color": "#4a4f58",
        "ytick.color": "#4a4f58",
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with rc_context(style):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, rect=(0, 0, 1, 0.93 if heading else 1))
        figure = Figure(figsize=(15, 8.4), dpi=110, layout=layout)
        if heading is not None:
            figure.text(0.012, 0.965, heading[0], fontsize=16, fontweight="bold", va="center")
            figure.text(0.012, 0.935, heading[1], fontsize=10.5, color="#4a4f58", va="center")
        axes = figure.subplots(2, 3, sharex=True).flatten()
        _draw_losses(axes[0], records)
        rates = {name: _label(name) for name in _valid_names(records, "wer") + _valid_names(records, "cer")}
        _draw_curves(axes[1], records, rates, title="Validation error rate", phase="valid", percent=True)
        name, unit = throughput(records)
        _draw_curves(axes[2], records, {name: ""}, title=f"Throughput ({unit})")
        _draw_curves(axes[3], records, {"lr": ""}, title="Learning rate")
        _draw_curves(axes[4], records, {"grad_norm": ""}, title="Gradient norm", log=True)
        shares = {"mfu": "MFU", "padding_share": "padding", "data_wait_share": "waiting for data"}
        _draw_curves(axes[5], records, shares, title="Efficiency", percent=True)
        for ax in axes:
            _mark_links(ax, records)
        image = BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def throughput(records: Iterable[Record]) -> tuple[str, str]:
    """Return the metric that says how fast a run went through its data, and its unit: tokens where it counted them."""
    has_tokens = any("tokens_per_s" in record for record in records)
    return ("tokens_per_s", "tokens/s") if has_tokens else ("audio_s_per_s", "audio s/s")


def curve(records: Sequence[Record], name: str, *, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of one metric, where it has a value."""
    points = [(r["step"], r[name]) for r in records if r["phase"] == phase and isinstance(r.get(name), int | float)]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most MAX_POINTS points: means of neighbors."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MAX_POINTS + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(steps, edges[:-1]) / counts, np.add.reduceat(values, edges[:-1]) / counts


def _draw_losses(ax: "Axes", records: Sequence[Record]) -> None:
    steps, values = thinned(*curve(records, "loss", phase="train"))
    is_noisy = len(values) > 50
    if is_noisy:
        ax.plot(steps, values, color=COLORS[0], alpha=0.25, linewidth=1)
    if len(values):
        ax.plot(steps, _smoothed(values) if is_noisy else values, color=COLORS[0], linewidth=1.8, label="train")
    for i, name in enumerate(_valid_names(records, "loss")):
        points = curve(records, name, phase="valid")
        ax.plot(*points, "o-", color=COLORS[i + 1], linewidth=1.8, markersize=3.5, label=_label(name))
    lowest = min((np.min(line.get_ydata()) for line in ax.lines), default=0.0)
    if lowest > 0 and len(values) and values.max() > 10 * lowest:  # the first losses of CTC are tens of times the last
        _set_log(ax)
    _finish(ax, title="Loss", percent=False)


def _draw_curves(
    ax: "Axes",
    records: Sequence[Record],
    names: Mapping[str, str],
    *,
    title: str,
    phase: str = "train",
    percent: bool = False,
    log: bool = False,
) -> None:
    for i, (name, label) in enumerate(names.items()):
        steps, values = thinned(*curve(records, name, phase=phase))
        if not len(steps):
            continue
        values = 100 * values if percent else values
        color, marker = COLORS[i % len(COLORS)], "o" if phase == "valid" else ""
        ax.plot(steps, values, "-", marker=marker, color=color, linewidth=1.6, markersize=3.5, label=label)
        if phase == "valid":
            place: dict[str, Any] = {
                "xytext": (4, 4),
                "textcoords": "offset points",
                "fontsize": 9,
                "fontweight": "bold",
            }
            ax.annotate(f"{values[-1]:.1f}", (steps[-1], values[-1]), color=color, **place)
    if log and ax.lines and min(np.min(line.get_ydata()) for line in ax.lines) > 0:
        _set_log(ax)
    elif ax.lines:
        ax.set_ylim(bottom=0)
    _finish(ax, title=title, percent=percent)


def _finish(ax: "Axes", *, title: str, percent: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_title(title)
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.tick_params(labelbottom=True)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if percent:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    if not ax.lines:
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color=GREY)
        ax.tick_params(left=False, labelleft=False)
        ax.grid(visible=False)
    elif any(line.get_label() and not str(line.get_label()).startswith("_") for line in ax.lines):
        ax.legend(loc="best")


def _set_log(ax: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _mark_links(ax: "Axes", records: Sequence[Record]) -> None:
    """Draw a dotted line at each step where a later link went on."""
    for record in records:
        if record["phase"] == "start" and record["step"] > 0 and ax.lines:
            ax.axvline(record["step"], color=GREY, linestyle=":", linewidth=1.2, label="_link")
            place: dict[str, Any] = {
                "xycoords": ("data", "axes fraction"),
                "xytext": (0, 3),
                "textcoords": "offset points",
            }
            label = f"link {record['link']}"
            ax.annotate(label, (record["step"], 1), ha="center", va="bottom", color=GREY, fontsize=8, **place)


def _valid_names(records: Sequence[Record], ending: str) -> list[str]:
    names = {name for record in records if record["phase"] == "valid" for name in record}
    return sorted(name for name in names if name.startswith("valid_") and name.rpartition("_")[2] == ending)


def _label(name: str) -> str:
    words = name.removeprefix("valid_").replace("_", " ")
    return {"loss": "validation"}.get(words, words.replace("wer", "WER").replace("cer", "CER"))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return the exponential mean over about a hundredth of the curve, corrected for its start."""
    decay = 1 - 1 / max(4.0, len(values) / 100)
    total = weight = 0.0
    smooth = np.empty_like(values)
    for i, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1
        smooth[i] = total / weight
    return smooth
