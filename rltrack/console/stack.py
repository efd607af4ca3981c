"""What `rltrack status` prints."""

from __future__ import annotations

from typing import Any

from rltrack.console.tables import table_of, terminal


def print_stack(rows: list[dict[str, Any]]) -> None:
    """Print the parts of a stack."""
    table = table_of("part | | address | process | restarts")
    for row in rows:
        mark = "[green]healthy[/]" if row["healthy"] else "[red]not there[/]"
        table.add_row(row["part"], mark, row["address"] or "", str(row["pid"] or ""), str(row["restarts"] or ""))
    terminal().print(table)
