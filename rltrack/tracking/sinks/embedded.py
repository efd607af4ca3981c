"""The root's own MLflow database: made once, whole, under a lock."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path

from rltrack.addresses import check_addressable, file_path, file_uri, read_only_uri, same_place, sqlite_uri
from rltrack.files import folder_name, make_private_folder, take_lock
from rltrack.tracking.sinks.schema import KNOWN_REVISIONS, check_schema, revision_of

_CREATION_SECONDS = 120.0
_METRIC_COLUMNS = {
    "key": "VARCHAR(250)", "value": "FLOAT", "is_nan": "BOOLEAN", "timestamp": "BIGINT", "step": "BIGINT",
    "run_uuid": "VARCHAR(32)",
}  # fmt: skip
_METRIC_KEY = ["key", "timestamp", "step", "run_uuid", "value", "is_nan"]


def database_path(root: Path) -> Path:
    """Return where a root's database is."""
    return root / "mlflow.db"


def database_uri(root: Path) -> str:
    """Return its address for MLflow."""
    return sqlite_uri(database_path(root))


def artifact_folder(root: Path, experiment: str) -> Path:
    """Return where the artifacts of an experiment go."""
    return root / "artifacts" / folder_name(experiment)


def ensure_database(root: Path) -> str:
    """Make the database if it is missing, and return its address.

    Processes that start together would break each other's migration, and a kill in the middle would leave a database that
    no program can open: so it is made under a lock, in a temporary file, and moved into place when it is complete. It uses a
    write-ahead log, which halves the time of a write.

    Raises:
        ConfigurationError: If the root's path cannot be part of an address.
        SchemaMismatch: If another version of MLflow wrote it.
    """
    check_addressable(root)
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
    check_schema(database)
    return database_uri(root)


def _create(root: Path, database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    draft, complete = root / ".mlflow-draft.db", root / ".mlflow-complete.db"
    for leftover in root.glob(".mlflow-*.db*"):
        leftover.unlink()
    store = SqlAlchemyStore(sqlite_uri(draft), file_uri(root / "artifacts"))  # type: ignore[no-untyped-call]
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
        table = self._connection.execute("PRAGMA table_info(metrics)").fetchall()
        columns = {name: type_ for _, name, type_, *_ in table}
        key = [row[1] for row in sorted(table, key=lambda row: row[5]) if row[5]]
        triggers = self._connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'metrics'"
        )
        indexes = self._connection.execute("PRAGMA index_list(metrics)").fetchall()
        self.is_usable = (
            revision_of(self._connection) in KNOWN_REVISIONS
            and columns == _METRIC_COLUMNS
            and key == _METRIC_KEY
            and triggers.fetchone() is None
            and [index[3] for index in indexes if index[2]] == ["pk"]
        )
        """Whether the table is the one that this was written for; where not, MLflow's own way is taken."""

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
    return next(iter(stale_roots(root)), None)


def stale_roots(root: Path) -> list[Path]:
    """Return the places that the database takes for the root and that lead elsewhere now, the newest first.

    A root that was used through a symbolic link has more than one name, and each of them is right as long as it leads there.
    """
    database = database_path(root)
    if not database.exists():
        return []
    with contextlib.closing(sqlite3.connect(read_only_uri(database), uri=True, timeout=20)) as connection:
        rows = connection.execute(
            "SELECT name, artifact_location FROM experiments ORDER BY experiment_id DESC"
        ).fetchall()
    found: dict[Path, None] = {}
    for name, location in rows:
        path = file_path(location or "")
        if path is None or not location.startswith("file:") or path.parts[-2:] != ("artifacts", folder_name(name)):
            continue
        if not same_place(path.parent.parent, root):
            found[path.parent.parent] = None
    return list(found)
