"""Where a run's numbers go: the root's own MLflow database, or what the user set.

What counts, the first that is given: the configuration, what the program set with MLflow's own functions
(``mlflow.set_tracking_uri``, ``mlflow.set_experiment``, an active run), MLflow's environment variables, where an earlier
attempt of the same run delivered to, the root's own database. MLflow is asked only if the program imported it itself.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rltrack.addresses import file_path, same_address, sqlite_uri
from rltrack.config import DEFAULT_SINKS
from rltrack.errors import ConfigurationError, RunDamaged
from rltrack.files import replace_text
from rltrack.runs import RunDirectory
from rltrack.sealed import seal_json, unseal_json
from rltrack.secrets import without_password
from rltrack.tracking.sinks import check_sink
from rltrack.tracking.sinks.embedded import database_uri

__all__ = [
    "DEFAULT_EXPERIMENT", "MLFLOW_PAGE", "Destination", "as_seen_from", "read_destination", "resolve_destination",
    "without_password", "write_destination",
]  # fmt: skip

DEFAULT_EXPERIMENT = "rltrack"
MLFLOW_PAGE = "RLTRACK_MLFLOW_PAGE"
"""Environment variable with the address of a page on the root's own MLflow database."""

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^/?].*)")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where numbers go.

    Attributes:
        tracking_uri: Address of an MLflow server or database; None for the root's own database.
        experiment: Name of the experiment.
        experiment_id: Its id, where the user's program gave that instead.
        mlflow_run_id: A run of the user's own to log into; None for one that is made.
        sinks: To which sinks, by name or as ``package.module:Name``. From here and not from the run's configuration, which may
            come from another machine: only who trains a run here says which modules its delivery imports.
    """

    tracking_uri: str | None = None
    experiment: str = DEFAULT_EXPERIMENT
    experiment_id: str | None = None
    mlflow_run_id: str | None = None
    sinks: tuple[str, ...] = DEFAULT_SINKS

    @property
    def shown(self) -> str | None:
        """The address without its password."""
        return None if self.tracking_uri is None else without_password(self.tracking_uri)


def resolve_destination(tracking: Mapping[str, Any], before: Destination | None = None) -> Destination:
    """Find out where numbers go, from this process.

    Args:
        tracking: The configuration's section ``tracking``.
        before: Where an earlier attempt delivered to.

    Raises:
        ConfigurationError: If MLflow cannot keep anything at that address, or there is no such sink.
    """
    before = before or Destination()
    sinks = tuple(tracking.get("sinks", before.sinks))
    for name in sinks:
        check_sink(name)
    fluent, active = sys.modules.get("mlflow.tracking.fluent"), None
    service = sys.modules.get("mlflow.tracking._tracking_service.utils")
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and callable(getattr(mlflow, "active_run", None)):
        active = mlflow.active_run()
    uri = (
        tracking.get("mlflow_tracking_uri")
        or getattr(service, "_tracking_uri", None)
        or os.environ.get("MLFLOW_TRACKING_URI")
    )
    if uri is None and active is not None and mlflow is not None:
        uri = mlflow.get_tracking_uri()
    given = tracking.get("experiment")
    by_id = None if given else getattr(fluent, "_active_experiment_id", None) or os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = given or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    own_run = active.info.run_id if active is not None else os.environ.get("MLFLOW_RUN_ID")
    if uri is None and by_id is None and own_run is None and name is None:
        return replace(before, sinks=sinks)
    return Destination(
        tracking_uri=_checked(str(uri)) if uri is not None else before.tracking_uri,
        experiment=name or before.experiment,
        experiment_id=str(by_id) if by_id else None,
        mlflow_run_id=own_run or before.mlflow_run_id,
        sinks=sinks,
    )


def read_destination(run: RunDirectory) -> Destination | None:
    """Return where the run's last attempt said its numbers go; None before the first.

    Raises:
        RunDamaged: If the file that says so cannot be read.
    """
    path = run.destination_file
    try:
        data = dict(unseal_json(path.read_bytes()))
        sinks = data.pop("sinks", list(DEFAULT_SINKS))
        found = Destination(**data, sinks=tuple(sinks))
        if not (
            isinstance(found.experiment, str)
            and all(value is None or isinstance(value, str) for value in data.values())
            and isinstance(sinks, list)
            and all(isinstance(name, str) for name in sinks)
        ):
            raise ValueError("it names no place")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        what = "it names no place" if isinstance(error, TypeError) else getattr(error, "strerror", None) or str(error)
        raise RunDamaged(
            f"{path}, which says where the run's numbers go, is damaged ({what}), so that nothing is delivered. The run itself is "
            "not touched by that. Put it back from a backup; or delete it: the numbers then go to the root's own database, or "
            "where the next attempt's settings say."
        ) from None
    return as_seen_from(run.root, found)


def as_seen_from(root: Path, destination: Destination) -> Destination:
    """Return it without an address if that is of the root's own database: it may have been given as any other is."""
    uri = destination.tracking_uri
    if uri is not None and same_address(uri, database_uri(root)):
        return replace(destination, tracking_uri=None)
    return destination


def write_destination(run: RunDirectory, destination: Destination) -> None:
    """Remember it; the file can be read by its owner only, as an address may hold a password."""
    replace_text(run.destination_file, seal_json(asdict(destination)), 0o600)


def _checked(uri: str) -> str:
    """Make a relative sqlite address absolute; refuse what MLflow 3 refuses."""
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        path = (file_path(uri) or Path(uri)).absolute()
        raise ConfigurationError(
            without_password(
                f"The MLflow tracking URI is '{uri}': MLflow 3 keeps no runs in plain folders. Use a database, such as "
                f"{sqlite_uri(path / 'mlflow.db')}, or a server, such as http://127.0.0.1:5000; or leave it out for the root's own "
                "database."
            )
        )
    relative = _SQLITE.fullmatch(uri)
    return relative[1] + str(Path(relative[2]).absolute()) if relative else uri
