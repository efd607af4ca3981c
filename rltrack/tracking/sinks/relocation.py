"""Repairing the absolute paths in the root's MLflow database and in the runs' folders after the root was moved."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rltrack.addresses import file_uri, moved
from rltrack.errors import ConfigurationError, SchemaMismatch
from rltrack.files import replace_text
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.destination import read_destination, write_destination
from rltrack.tracking.sinks.embedded import database_path, stale_roots
from rltrack.tracking.sinks.schema import KNOWN_REVISIONS, revision_of
from rltrack.tracking.takeover import hold_delivery

_PATHS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "storage_location", ""),
    ("model_versions", "source", ""),
    ("tags", "value", "key = 'rltrack.directory' AND "),
)
"""Where MLflow's database holds absolute paths."""


def relocate(root: Root) -> tuple[Path, int] | None:
    """Repair the absolute paths in the database and in the runs' folders after the root was moved.

    Processes that wait for just this are ended; training goes on, and starts another to deliver.

    Returns:
        Where the root was, and how many entries were changed; None if nothing had to be.

    Raises:
        ConfigurationError: If a run is being delivered.
        SchemaMismatch: If the database is of a version of MLflow that is not known here.
    """
    old = stale_roots(root.path)
    if not old:
        return None
    with contextlib.ExitStack() as held:
        busy = []
        for run in root.runs():
            descriptor = hold_delivery(run)
            if descriptor is None:
                busy.append(run.name)
            else:
                held.callback(os.close, descriptor)
        if busy:
            raise ConfigurationError(
                f"Runs under {root.path} are being delivered: {', '.join(busy)}. Wait for it, or end it with `rltrack sync RUN "
                "--take-over`; then `rltrack relocate` again."
            )
        changed = sum(_repair_database(root.path, place) for place in old)
        for run in root.runs():
            for place in old:
                _repair_run(run, place, root.path)
    return old[0], changed


def _repair_database(root: Path, old: Path) -> int:
    changed = 0
    with contextlib.closing(sqlite3.connect(database_path(root), timeout=20)) as connection, connection:
        _check(connection, database_path(root))
        for before, now in ((file_uri(old), file_uri(root)), (str(old), str(root))):
            for table, column, where in _PATHS:
                changed += connection.execute(
                    f"UPDATE {table} SET {column} = :now || substr({column}, :rest) WHERE {where}"
                    f"({column} = :before OR substr({column}, 1, :rest) = :before || '/') "
                    f"AND NOT ({column} = :now OR substr({column}, 1, :inside) = :now || '/')",
                    {"before": before, "now": now, "rest": len(before) + 1, "inside": len(now) + 1},
                ).rowcount
    return changed


def _check(connection: sqlite3.Connection, database: Path) -> None:
    """The tables must be those that this was written for: a path left out is a model that cannot be found."""
    found = revision_of(connection)
    missing = [
        f"{table}.{column}"
        for table, column, _ in _PATHS
        if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    ]
    if found not in KNOWN_REVISIONS or missing:
        known = ", ".join(sorted(KNOWN_REVISIONS.values()))
        raise SchemaMismatch(
            f"{database} has the schema {found or 'of no MLflow'}, and rltrack knows where the paths are in those of MLflow {known}"
            f"{f'; it lacks {missing[0]}' if missing else ''}. Nothing was changed. Update rltrack, and try again."
        )


def _repair_run(run: RunDirectory, old: Path, new: Path) -> None:
    def in_place(text: str) -> str:
        return moved(text, old, new)

    with contextlib.suppress(OSError, ValueError, RecursionError):  # one that cannot be read counts as none
        before = json.loads(run.bookmark_file.read_text())
        after = _mapped(before, in_place)
        if after != before:
            replace_text(run.bookmark_file, json.dumps(after))
    destination = read_destination(run)
    if destination is not None and destination.tracking_uri is not None:
        uri = in_place(destination.tracking_uri)
        if uri != destination.tracking_uri:
            write_destination(run, replace(destination, tracking_uri=uri))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
