"""The databases behind Prefect's and MLflow's servers: sqlite under the root, or two databases of a PostgreSQL server."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from rltrack.errors import ConfigurationError, MissingExtra, RltrackError
from rltrack.tracking.destination import without_password


class Databases:
    """Where the servers keep their data.

    Both tools number their migrations in a table of the same name, so each needs its own database: for
    ``postgresql://host/rltrack``, ``rltrack_prefect`` and ``rltrack_mlflow``.

    Args:
        url: ``postgresql://user@host:port/name``; None for sqlite under the root.

    Raises:
        ConfigurationError: If the address is not one of a PostgreSQL database.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.path.strip("/"):
                raise ConfigurationError(
                    f"--database-url is {without_password(url)!r}. Give postgresql://user:password@host:port/name; the databases "
                    "name_prefect and name_mlflow are made there."
                )

    @property
    def mlflow(self) -> str | None:
        """Address of MLflow's database; None for the root's own."""
        return None if self._url is None else self._of("mlflow", "postgresql+psycopg")

    @property
    def prefect(self) -> str | None:
        """Address of Prefect's database; None for the root's own."""
        return None if self._url is None else self._of("prefect", "postgresql+asyncpg")

    def check(self) -> None:
        """Check that the databases are usable, and create them if they are missing.

        Raises:
            MissingExtra: If the driver is missing.
            RltrackError: If PostgreSQL refuses.
        """
        if self._url is None:
            return
        try:
            import psycopg
        except ImportError:
            raise MissingExtra("PostgreSQL needs psycopg: pip install 'rltrack[postgres]'.") from None
        try:
            with psycopg.connect(self._of(None, "postgresql"), autocommit=True, connect_timeout=10) as connection:
                for tool in ("prefect", "mlflow"):
                    name = self._name(tool)
                    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
                    if known is None:
                        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        except psycopg.Error as error:
            message = without_password(" ".join(str(error).split()))
            raise RltrackError(
                f"PostgreSQL at {without_password(self._url)} refuses: {message}. The user must be allowed to connect to the "
                "database 'postgres' and to create databases; or make the two databases beforehand."
            ) from None

    def _name(self, tool: str) -> str:
        assert self._url is not None
        return f"{urlsplit(self._url).path.strip('/')}_{tool}"

    def _of(self, tool: str | None, scheme: str) -> str:
        parts = urlsplit(self._url or "")
        path = "/postgres" if tool is None else f"/{self._name(tool)}"
        return urlunsplit((scheme, parts.netloc, path, parts.query, ""))
