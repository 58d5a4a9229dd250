"""Tables for a terminal of 80 columns; color only where a person looks."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOR_CODES = {"red": 31, "green": 32, "yellow": 33, "cyan": 36}


def console() -> "Console":
    from rich.console import Console

    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80
    return Console(width=width, no_color=not sys.stdout.isatty(), highlight=False)


def table(*columns: str) -> "Table":
    """A table whose first column is on the left and whose long cells are folded."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_list(columns: Sequence[str], rows: Sequence[Sequence[str]], *, colors: Mapping[str, str]) -> None:
    """A long list: a line a row, which takes a thousandth of the time that a table of rich does. `colors`: of words."""
    widths = [max(len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    is_colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, row in enumerate([columns, ["-" * width for width in widths], *rows]):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if is_colored and number > 1:
            codes = (COLOR_CODES.get(colors.get(cell, "")) for cell in row)
            cells = [f"\033[{code}m{text}\033[0m" if code else text for code, text in zip(codes, cells, strict=True)]
        print("  ".join(cells).rstrip())


def colored(text: str, color: str | None) -> str:
    """A cell in a color, in the markup of the tables."""
    return f"[{color}]{text}[/]" if color else text


def duration(seconds: float | None) -> str:
    """`3 s`, `5 min 12 s`, `7 h 03 min`, `2 d 4 h`."""
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
