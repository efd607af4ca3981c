"""Which schema an MLflow database has, by its revision, as MLflow itself determines it."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sqlite3
from pathlib import Path

from rltrack.addresses import read_only_uri, sqlite_uri
from rltrack.errors import SchemaMismatch

KNOWN_REVISIONS = {"b7e2c1a4d9f3": "3.16", "dc11669786a5": "3.17", "f4a9b2c7d1e6": "3.18"}
"""The schemas that rltrack writes to directly, with the MLflow that made them. A test holds the installed MLflow against it."""


def revision_of(connection: sqlite3.Connection) -> str | None:
    """Return the revision of a database's schema; None where it has none, or several."""
    try:
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.OperationalError:
        return None
    return str(rows[0][0]) if len(rows) == 1 else None


@functools.cache
def expected_revision() -> str:
    """Return the revision that the installed MLflow asks for."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def check_schema(database: Path) -> None:
    """Find out whether the installed MLflow can use a sqlite database.

    Raises:
        SchemaMismatch: If not, with what the user has to do.
        sqlite3.Error: If it cannot be read.
    """
    with contextlib.closing(sqlite3.connect(read_only_uri(database), uri=True, timeout=20)) as connection:
        found = revision_of(connection)
    if found != expected_revision():
        raise SchemaMismatch(mismatch(sqlite_uri(database), found))


def mismatch(uri: str, found: str | None) -> str:
    """Say what to do about a database whose schema is another than the installed MLflow's."""
    import mlflow

    who = (
        f"the schema of MLflow {KNOWN_REVISIONS[found]}"
        if found in KNOWN_REVISIONS
        else f"the schema {found or 'of no MLflow'}"
    )
    if found is not None and not _is_older(found):
        return (
            f"The MLflow database {uri} has {who}, which MLflow {mlflow.__version__}, installed here, does not know: a newer "
            "MLflow wrote it, and it cannot be taken back. Install that MLflow again: pip install --upgrade mlflow."
        )
    return (
        f"The MLflow database {uri} has {who}, and MLflow {mlflow.__version__}, installed here, asks for {expected_revision()}. "
        f"End what uses it, copy it, then: mlflow db upgrade {shlex.quote(uri)}. Nothing is lost: what is missing there is "
        "delivered afterwards, by `rltrack sync --all`."
    )


def _is_older(revision: str) -> bool:
    """Whether the installed MLflow has an upgrade from this revision."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    try:
        config = _get_alembic_config(db_url="")  # type: ignore[no-untyped-call]
        return ScriptDirectory.from_config(config).get_revision(revision) is not None
    except CommandError:
        return False
