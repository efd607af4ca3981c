"""Formats for the command line: tables, numbers, sizes, ages, paths; colours only on a terminal without ``NO_COLOR``."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rltrack.journal.values import info_title
from rltrack.training.reporter import format_duration

_WIDE = 1000
"""Width to which a table may grow: one that is wider than the window wraps its lines, rather than cutting cells."""
STYLES = {"completed": "green", "running": "cyan", "stopped": "yellow", "interrupted": "yellow", "failed": "red"}


def terminal() -> Console:
    """Return standard output; long lines are not wrapped, so that paths can be copied."""
    return Console(soft_wrap=True, width=_WIDE)


def table_of(columns: str, *, title: str | None = None) -> Table:
    """Return an empty table.

    Args:
        columns: Their titles, separated by bars; ``>`` aligns a column to the right, such as ``run | >env steps``.
        title: Title of the table.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in columns.split("|"):
        name = column.strip()
        right = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if right else "left", no_wrap=True, overflow="ignore")
    return table


def add_info_columns(table: Table, keys: Iterable[str]) -> None:
    """Add a column for each info of episodes."""
    for key in keys:
        table.add_column(escape(info_title(key)), justify="right", no_wrap=True)


def number(value: float | None) -> str:
    """Return a value to five digits, or a dash for none."""
    return "–" if value is None else f"{value:.5g}"


def size(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def age(moment: float | None) -> str:
    """Return how long ago a moment (seconds since the epoch) was."""
    return "–" if moment is None else f"{format_duration(max(time.time() - moment, 0))} ago"


def styled(state: str) -> str:
    """Return a state in its colour."""
    style = STYLES.get(state)
    return f"[{style}]{state}[/]" if style else escape(state)


def short_path(path: Path) -> str:
    """Return a path relative to the current folder, if it is inside it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def program(name: str) -> str:
    """Return how to call a program of this Python environment from the current folder."""
    own = Path(sys.executable).parent / name
    on_path = shutil.which(name)
    if on_path and Path(on_path) == own:
        return name
    return short_path(own) if own.exists() else name
