"""What `rltrack study`, `sweep` and `compare` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from rltrack.console.tables import number, table_of, terminal

if TYPE_CHECKING:
    from rltrack.comparison.study import Study


_SHOWN_TRIALS = 10


def print_trials(rows: Sequence[dict[str, Any]], seeds: int) -> None:
    """Print how many trials of a sweep are in each state, and the best ones as a table."""
    out = terminal()
    counts = Counter(row["state"] for row in rows)
    out.print(f"{len(rows)} trials: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    shown = [row for row in rows if row["value"] is not None][:_SHOWN_TRIALS]
    if shown:
        names = list(dict.fromkeys(name for row in shown for name in row["values"]))
        score = "mean return" if seeds == 1 else f"mean of {seeds} seeds"
        table = table_of(" | ".join([">trial", f">{score}", "state", *names]))
        for row in shown:
            values = [_setting(row["values"].get(name)) for name in names]
            table.add_row(str(row["trial"]), number(row["value"]), row["state"], *map(escape, values))
        out.print(table)
    for row in [row for row in rows if row["state"] == "failed"][:_SHOWN_TRIALS]:
        out.print(f"[red]trial {row['trial']} failed[/]: {escape(row['reason'] or 'no reason recorded')}")


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def print_comparison(study: Study) -> None:
    """Print groups of runs side by side, one column each."""
    from rltrack.comparison.page import shown_rows, shown_setting

    rows, out = study.rows(), terminal()
    several = len(rows) > 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for place, row in enumerate(rows, 1):
        label = f"[{place}] {row['group']}" if several else row["group"]
        table.add_column(escape(label), justify="right", no_wrap=True)
    for title, texts in shown_rows(rows):
        table.add_row(f"  {title}" if title.startswith("95") else escape(title), *texts)
    for index in range(len(rows) if several else 0):
        chances = [study.improvement[other][index][0] for other in range(len(rows))]
        cells = ["" if other == index else f"{chance:.2f}" for other, chance in enumerate(chances)]
        table.add_row(escape(f"P(better than [{index + 1}])"), *cells)
    out.print(table)
    if study.note:
        out.print(escape(study.note))
    if study.warning:
        out.print(f"[yellow]{escape(study.warning)}[/]")
    if study.threshold is not None:
        out.print(
            f"threshold {study.threshold:g}; P over {'seeds' if study.by_seed else 'episodes'} of the last evaluation"
        )
    if study.differences:
        out.print("\n[bold]what differs[/]")
        differing = Table(box=None, show_header=False, pad_edge=False)
        for key, values in study.differences.items():
            differing.add_row(key, *(escape(shown_setting(value)) for value in values))
        out.print(differing)
