"""What `rltrack status`, `deploy` and `undeploy` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rltrack.console.tables import table_of, terminal

if TYPE_CHECKING:
    from rltrack.flows.installation import Step


def print_stack(rows: list[dict[str, Any]]) -> None:
    """Print the parts of a stack."""
    table = table_of("part | | address | process | restarts")
    for row in rows:
        mark = "[green]healthy[/]" if row["healthy"] else "[red]down[/]"
        table.add_row(row["part"], mark, row["address"] or "", str(row["pid"] or ""), str(row["restarts"] or ""))
    terminal().print(table)


def print_steps(steps: Sequence[Step]) -> None:
    """Print the steps on a Prefect server, and below each the differences between file and server (file → server)."""
    console = terminal()
    for step in steps:
        console.print(f"{step.action:<7} {step.what:<11} {step.name}", markup=False, highlight=False)
        for line in step.details:
            console.print(f"          {line}", markup=False, highlight=False)
