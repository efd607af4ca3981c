"""MLflow's empty sqlite database: its sixty migrations run once, five seconds of CPU; every further one is a copy."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from rltrack.addresses import file_uri
from rltrack.files import take_lock
from rltrack.tracking.sinks import embedded

SHARED = "RLTRACK_TESTS_FOLDER"
"""The variable that names the folder which all processes of the tests have in common."""
_make = embedded._create


def copy_for_root(root: Path, database: Path) -> None:
    """Make a root's database; in place of `rltrack.tracking.sinks.embedded._create`."""
    draft = root / ".mlflow-copy.db"
    copy_for_server(draft, file_uri(root / "artifacts" / "0"))
    os.replace(draft, database)


def copy_for_server(database: Path, artifacts: str = "mlflow-artifacts:/0") -> None:
    """Make a database whose experiment "Default" has its artifacts at an address."""
    shutil.copyfile(_first(), database)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", (artifacts,))


def _first() -> Path:
    folder = Path(os.environ[SHARED]) / "empty-database"
    made = folder / "mlflow.db"
    if not made.exists():
        folder.mkdir(exist_ok=True)
        lock = take_lock(folder / "lock", 120.0)
        if not made.exists():
            _make(folder, made)
        os.close(lock)
    return made
