"""The root's own MLflow database: made once, whole, under a lock."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rltrack import damage
from rltrack.errors import ConfigurationError, RunDamaged
from rltrack.files import folder_name, make_private_folder, take_lock
from rltrack.runs import Root
from rltrack.tracking.bookmark import move_bookmark
from rltrack.tracking.destination import read_destination, write_destination

_CREATION_SECONDS = 120.0
_METRIC_COLUMNS = ("key", "value", "is_nan", "timestamp", "step", "run_uuid")
_PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Where MLflow's database holds absolute paths."""


def database_path(root: Path) -> Path:
    """Return where a root's database is."""
    return root / "mlflow.db"


def database_uri(root: Path) -> str:
    """Return its address for MLflow."""
    return f"sqlite:///{database_path(root)}"


def artifact_folder(root: Path, experiment: str) -> Path:
    """Return where the artifacts of an experiment go."""
    return root / "artifacts" / folder_name(experiment)


def ensure_database(root: Path) -> str:
    """Make the database if it is missing, and return its address.

    Processes that start together would break each other's migration, and a kill in the middle would leave a database that
    nobody can open: so it is made under a lock, in a temporary file, and moved into place when it is complete. It uses a
    write-ahead log, which halves the time of a write.
    """
    database = database_path(root)
    if not database.exists():
        make_private_folder(root)
        lock = take_lock(root / ".mlflow.lock", _CREATION_SECONDS)
        if lock is None:
            raise TimeoutError(f"Another process has been making {database} for {_CREATION_SECONDS:.0f} s")
        try:
            if not database.exists():
                _create(root, database)
        finally:
            os.close(lock)
    return database_uri(root)


def _create(root: Path, database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    draft, complete = root / ".mlflow-draft.db", root / ".mlflow-complete.db"
    for leftover in root.glob(".mlflow-*.db*"):
        leftover.unlink()
    store = SqlAlchemyStore(f"sqlite:///{draft}", (root / "artifacts").as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    with contextlib.closing(sqlite3.connect(draft)) as source, contextlib.closing(sqlite3.connect(complete)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode=WAL")
    os.replace(complete, database)
    for leftover in root.glob(".mlflow-*.db*"):
        leftover.unlink()


class MetricRows:
    """Inserts metrics into the root's own database, ten times as fast as MLflow's store, which makes an object of each.

    Only for rows that are not their key's latest: those go through MLflow, which also checks the run and keeps its table of
    latest metrics. Rows that are there already are left out, as MLflow does.

    Args:
        root: The root.
    """

    def __init__(self, root: Path) -> None:
        self._connection = sqlite3.connect(database_path(root), timeout=20, isolation_level=None)
        found = {row[1] for row in self._connection.execute("PRAGMA table_info(metrics)")}
        self.is_usable = found == set(_METRIC_COLUMNS)
        """Whether the table is the one that this was written for; another version of MLflow may have another."""

    def insert(self, run_id: str, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Insert rows of key, value, milliseconds and step, all or none."""
        columns = ", ".join(_METRIC_COLUMNS)
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                f"INSERT OR IGNORE INTO metrics ({columns}) VALUES (?, ?, ?, ?, ?, ?)",
                ((key, *_storable(value), timestamp, step, run_id) for key, value, timestamp, step in rows),
            )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _storable(value: float) -> tuple[float, bool]:
    """A value and whether it is NaN, as MLflow stores them: 0 for NaN, the largest float for an infinity."""
    if math.isfinite(value):
        return value, False
    return (0.0, True) if math.isnan(value) else (math.copysign(sys.float_info.max, value), False)


def moved_from(root: Path) -> Path | None:
    """Return where the root was when its database was written, if it is elsewhere now; None if nothing was moved."""
    database = database_path(root)
    if not database.exists():
        return None
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        rows = connection.execute(
            "SELECT name, artifact_location FROM experiments ORDER BY experiment_id DESC"
        ).fetchall()
    for name, location in rows:
        path = Path(unquote(urlsplit(location).path))
        if (
            location.startswith("file:")
            and path.parts[-2:] == ("artifacts", folder_name(name))
            and path.parent.parent != root
        ):
            return path.parent.parent
    return None


def relocate(root: Root) -> tuple[Path, int] | None:
    """Repair the absolute paths in the database and in the runs' folders after the root was moved.

    Returns:
        Where the root was, and how many entries were changed; None if nothing had to be.

    Raises:
        ConfigurationError: If a run is being trained or delivered.
    """
    old = moved_from(root.path)
    if old is None:
        return None
    busy = [run.name for run in root.runs() if run.is_locked() or run.is_shipped()]
    if busy:
        raise ConfigurationError(f"Runs under {root.path} are in use: {', '.join(busy)}. Wait for them, or stop them.")
    changed = 0
    with contextlib.closing(sqlite3.connect(database_path(root.path), timeout=20)) as connection, connection:
        for before, now in ((old.as_uri(), root.path.as_uri()), (str(old), str(root.path))):
            for table, column in _PATHS:
                changed += connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                ).rowcount
            changed += connection.execute(
                "UPDATE tags SET value = ? || substr(value, ?) WHERE key = 'rltrack.directory' AND substr(value, 1, ?) = ?",
                (now, len(before) + 1, len(before) + 1, f"{before}/"),
            ).rowcount
    for run in root.runs():
        move_bookmark(run, old, root.path)
        try:
            destination = read_destination(run)
        except RunDamaged as error:  # keeps none of the others
            damage.report(str(error))
            continue
        if destination is not None and destination.tracking_uri is not None:
            uri = destination.tracking_uri.replace(f"{old}/", f"{root.path}/")
            write_destination(run, replace(destination, tracking_uri=uri))
    return old, changed
