"""The root's own MLflow database: made once, whole, under a lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def database_path(root: Path) -> Path:
    """Return where a root's database is."""
    return root / "mlflow.db"


def artifact_folder(root: Path, experiment: str) -> Path:
    """Return where the artifacts of an experiment go."""
    return root / "artifacts" / experiment


def ensure_database(root: Path) -> str:
    """Make the database if it is missing, and return its address.

    Processes that start together would break each other's migration, and a kill in the middle would leave a database that
    nobody can open: so it is made under a lock, in a temporary file, and moved into place when it is complete. It uses a
    write-ahead log, which halves the time of a write.
    """
    database = database_path(root)
    if not database.exists():
        root.mkdir(parents=True, exist_ok=True)
        with _exclusively(root / ".mlflow.lock"):
            if not database.exists():
                _create(root, database)
    return f"sqlite:///{database}"


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
