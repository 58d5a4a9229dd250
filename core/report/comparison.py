"""The curves of several runs in one picture.

python -m core.report.comparison runs/comparison.png runs/one runs/other
"""

import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.report.picture import curve, thinned, throughput
from core.rundir.files import METRICS
from core.rundir.metrics_log import read_metrics
from core.rundir.whole_files import appears_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]
MOST_PANELS = 6
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}


def panels(runs: Mapping[str, Records]) -> list[tuple[str, str]]:
    """Return (phase, name) of what is drawn: the loss, validation metrics of two runs or more, then speed."""
    counts: dict[str, int] = {}
    for records in runs.values():
        for name in {name for record in records if record["phase"] == "valid" for name in record}:
            if name.startswith("valid_"):
                counts[name] = counts.get(name, 0) + 1
    shared = sorted(name for name, count in counts.items() if count > 1)
    chosen = [("valid", name) for name in shared][: MOST_PANELS - 2]
    speed, _ = throughput(chain.from_iterable(runs.values()))
    return [("train", "loss"), *chosen, ("train", speed)]


def draw(runs: Mapping[str, Records]) -> bytes:
    """Return a PNG with one panel a metric and one line a run."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    chosen = panels(runs)
    with rc_context(STYLE):
        width = min(3, len(chosen))
        height = -(-len(chosen) // width)
        figure = Figure(figsize=(5 * width, 4 * height + 0.6), dpi=110, layout="constrained")
        axes = figure.subplots(height, width, squeeze=False).flatten()
        for ax, (phase, name) in zip(axes, chosen, strict=False):
            for color, (label, records) in zip(line_colors(len(runs)), runs.items(), strict=True):
                _line(ax, records, name, phase=phase, color=color, label=label)
            ax.set_title(f"{name.removeprefix('valid_')} ({'validation' if phase == 'valid' else 'training'})")
            ax.set_xlabel("step")
        for ax in axes[len(chosen) :]:
            ax.set_visible(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        image = BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def line_colors(count: int) -> list[Any]:
    """Return as many colors as there are lines, as different as may be."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "turbo"]
    return [palette(number if count <= 10 else number / (count - 1)) for number in range(count)]


def _line(ax: "Axes", records: Records, name: str, *, phase: str, color: Any, label: str) -> None:
    steps, values = thinned(*curve(records, name, phase=phase))
    marker = "o" if phase == "valid" else ""
    ax.plot(steps, values, color=color, linewidth=1.5, marker=marker, markersize=3, label=label)


def main(words: Sequence[str]) -> int:
    picture, *directories = map(Path, words)
    runs = {directory.name: read_metrics(directory / METRICS) for directory in directories}
    with appears_whole(picture) as file:
        file.write(draw(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
