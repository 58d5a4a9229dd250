"""Tables for a terminal of 80 columns; color only where a person looks."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHORTEST = 8  # of a shortened column
COLOR_CODES = {"red": 31, "green": 32, "yellow": 33, "cyan": 36}


def console() -> "Console":
    """Return where tables are printed: 80 columns wide, or as wide as the terminal."""
    from rich.console import Console

    return Console(width=_width(), no_color=not sys.stdout.isatty(), highlight=False)


def table(*columns: str) -> "Table":
    """Return a table without rows, whose long cells will be folded."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_list(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, colors: Mapping[str, str], gives_way: str
) -> None:
    """Print a long list: a line a row, which takes a thousandth of the time that a table of rich does.

    `colors`: of words. `gives_way`: the column whose cells are shortened where the lines are too long.
    """
    widths = [max(len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    place, excess = columns.index(gives_way), sum(widths) + 2 * (len(widths) - 1) - _width()
    if excess > 0:
        widths[place] = max(min(SHORTEST, widths[place]), widths[place] - excess)
    is_colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, row in enumerate([columns, ["-" * width for width in widths], *rows]):
        cells = [shortened(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)]
        if is_colored and number > 1:
            codes = (COLOR_CODES.get(colors.get(cell, "")) for cell in row)
            cells = [f"\033[{code}m{text}\033[0m" if code else text for code, text in zip(codes, cells, strict=True)]
        print("  ".join(cells).rstrip())


def shortened(text: str, width: int) -> str:
    """Shorten a text to `a_long_n..ame-12`: the end tells the runs of a sweep apart."""
    if len(text) <= width:
        return text
    kept = width - 2
    return f"{text[: kept - kept // 2]}..{text[len(text) - kept // 2 :]}"


def _width() -> int:
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80


def colored(text: str, color: str | None) -> str:
    """Return a cell in a color, in the markup of the tables."""
    return f"[{color}]{text}[/]" if color else text


def duration(seconds: float | None) -> str:
    """Return seconds as `3 s`, `5 min 12 s`, `7 h 03 min` or `2 d 4 h`; nothing for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
