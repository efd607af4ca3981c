"""What `rltrack checkpoints` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from rltrack.console.tables import age, number, size, table_of, terminal
from rltrack.training.strategies import retention_of

if TYPE_CHECKING:
    from rltrack.runs import RunDirectory


def checkpoint_rows(
    run: RunDirectory, *, verify: bool, prune: bool, pin: Sequence[str], unpin: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Pin, unpin and prune as asked; return one mapping per version, and the problems of folders that are not versions.

    Raises:
        CheckpointNotFound: If a version to pin or unpin does not exist; none is changed then.
        RunBusy: If the run is being trained, and is to be pruned.
    """
    retention = None
    if prune and run.config_file.exists():
        configuration = run.configuration()
        retention = retention_of(configuration.checkpoints, configuration.strategy)
    store = run.store(retention)
    to_pin, to_unpin = ([store.find(selector) for selector in selectors] for selectors in (pin, unpin))
    for version in to_pin:
        store.pin(version)
    for version in to_unpin:
        store.unpin(version)
    if prune:
        with run.lock():
            store.prune()
    pinned = store.pinned()
    rows = [
        {
            "name": version.name,
            "env_steps": version.env_steps,
            "score": version.score,
            "resumable": version.is_resumable,
            "environments": (version.details.get("environments") or {}).get("tier"),
            "attempt": version.details.get("attempt"),
            "created": version.created,
            "bytes": version.size_bytes,
            "pinned": version.number in pinned,
            "problem": store.verify(version) if verify else None,
        }
        for version in store.versions()
    ]
    return rows, store.problems()


def print_checkpoints(rows: Sequence[dict[str, Any]], problems: Sequence[str], *, verified: bool) -> None:
    """Print the versions as a table, and the problems below it."""
    out = terminal()
    if not rows and not problems:
        out.print("No versions yet.")
        return
    table = table_of("version | >env steps | >mean return | holds | >size | >written |")
    for row in rows:
        marks = ["pinned"] if row["pinned"] else []
        if verified:
            marks.append("[red]damaged[/]" if row["problem"] else "[green]verified[/]")
        table.add_row(
            row["name"],
            f"{row['env_steps']:,}",
            number(row["score"]),
            f"all, {row['environments'] or 'no env'}" if row["resumable"] else "policy",
            size(row["bytes"]),
            age(row["created"]),
            " ".join(marks),
        )
    out.print(table)
    for problem in [*(row["problem"] for row in rows if row["problem"]), *problems]:
        out.print(f"[red]{escape(problem)}[/]")
