"""What `rltrack models` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from rltrack.console.tables import terminal
from rltrack.tracking.destination import without_password


def print_models(rows: Sequence[dict[str, Any]], uri: str) -> None:
    """Print registered models with their history."""
    out = terminal()
    if not rows:
        out.print(
            "No models yet. Make a run's policy the first champion: rltrack promote RUN --model NAME --floor SCORE"
        )
        return
    for row in rows:
        out.print(f"[bold]{escape(row['name'])}[/]")
        for role in ("champion", "challenger"):
            item = row[role]
            if item is not None:
                level = "" if item["level"] is None else f"{100 * item['level']:g} % "
                out.print(
                    f"  {role:10}  version {item['version']}  {escape(item['source'])}  mean return {item['mean_return']} "
                    f"({level}interval {item['interval']})"
                )
        for event in row["history"]:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(event["time"]))
            style = {"promoted": "green", "refused": "yellow", "degraded": "red"}.get(event["kind"], "")
            what = f"[{style}]{event['kind']:11}[/]" if style else f"{event['kind']:11}"
            out.print(f"  {event['number']:>4}  {when}  {what}  version {event['version']}  {escape(event['source'])}")
            out.print(f"        {escape(event['reason'])}")
        out.print()
    out.print(
        f"To load or serve a champion: export MLFLOW_TRACKING_URI={without_password(uri)}, then models:/NAME@champion"
    )
