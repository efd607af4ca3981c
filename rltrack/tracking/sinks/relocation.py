"""Repairing the absolute paths in the root's MLflow database and in the runs' folders after the root was moved."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

from rltrack import damage
from rltrack.addresses import file_uri, moved, read_only_uri
from rltrack.errors import ConfigurationError, RunDamaged, SchemaMismatch
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import move_bookmark
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

_WAIT_SECONDS = 20.0


def relocate(root: Root) -> tuple[Path, int] | None:
    """Repair the absolute paths in the database and in the runs' folders after the root was moved.

    Processes that wait for just this are ended; training continues, and starts another to deliver.

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
        deadline = time.monotonic() + _WAIT_SECONDS
        for run in root.runs():
            # one that starts to deliver finds in a moment that it cannot, and can be ended then
            while (descriptor := hold_delivery(run)) is None and time.monotonic() < deadline:
                time.sleep(0.2)
            if descriptor is None:
                busy.append(run.name)
            else:
                held.callback(os.close, descriptor)
        if busy:
            raise ConfigurationError(
                f"Runs under {root.path} are being delivered: {', '.join(busy)}. Wait for it, or end it with `rltrack sync RUN "
                "--take-over`; then `rltrack relocate` again."
            )
        every = [*old, *(place for place in _former_names(root) if place not in old)]
        changed = sum(_repair_database(root.path, place) for place in every)
        for run in root.runs():
            for place in every:
                _repair_run(run, place, root.path)
    return old[0], changed


def _former_names(root: Root) -> list[Path]:
    """The places, gone now, from which runs of this root were delivered: one that was used through a link had two names."""
    with contextlib.closing(
        sqlite3.connect(read_only_uri(database_path(root.path)), uri=True, timeout=20)
    ) as connection:
        rows = connection.execute("SELECT DISTINCT value FROM tags WHERE key = 'rltrack.directory'").fetchall()
    names, folders = set(root.names()), (Path(value) for (value,) in rows)
    found = [path.parent.parent for path in folders if path.name in names and path.is_absolute() and not path.exists()]
    return list(dict.fromkeys(found))


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
    move_bookmark(run, old, new)
    try:
        destination = read_destination(run)
    except RunDamaged as error:  # keeps none of the others
        damage.report(str(error))
        return
    if destination is not None and destination.tracking_uri is not None:
        uri = moved(destination.tracking_uri, old, new)
        if uri != destination.tracking_uri:
            write_destination(run, replace(destination, tracking_uri=uri))
