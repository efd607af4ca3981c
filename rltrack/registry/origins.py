"""Finds the runs that registered models come from, in every registry that may have a model of the root's runs.

Runs of one root can be delivered to several places, and a run's models are registered where the run is. So the origins are
known only when all registries have answered.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import sqlalchemy
from mlflow.tracking import MlflowClient

from rltrack.addresses import same_address, sqlite_path
from rltrack.errors import ConfigurationError, RegistryUnavailable, RltrackError, RunDamaged
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.models import POLICY_TAG
from rltrack.registry.registered import Registered
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.destination import Destination, read_destination, resolve_destination, without_password
from rltrack.tracking.sinks.embedded import database_uri

SILENCE_SECONDS = 30.0
"""Timeout for each answer of a registry."""

_SHOWN_RUNS = 5
_DATABASE_SERVERS = ("postgresql", "mysql", "mssql")


@dataclass(frozen=True, slots=True)
class Origins:
    """The registered versions that come from runs, by the run's ids and names.

    Attributes:
        by_run_id: By the run's own id, which a version has in a tag.
        by_mlflow_run: By MLflow's id of the run.
        by_name: By the run's name, for versions of older releases, which lack that tag.
    """

    by_run_id: Mapping[str, str]
    by_mlflow_run: Mapping[str, str]
    by_name: Mapping[str, str]

    def of(self, run: RunDirectory) -> str | None:
        """Return the description of a registered version that comes from this run; None if there is none."""
        bookmark, destination = read_bookmark(run), read_destination(run)
        ids = [None if bookmark is None else bookmark.mlflow.state.get("run_id")]
        ids.append(None if destination is None else destination.mlflow_run_id)
        by_mlflow = next((self.by_mlflow_run[item] for item in ids if item and item in self.by_mlflow_run), None)
        return self.by_run_id.get(run.run_id) or by_mlflow or self.by_name.get(run.name)


def find_origins(root: Root, runs: Sequence[RunDirectory], gone: Collection[str] = ()) -> Origins:
    """Query every registry in which the runs may have models.

    Raises:
        RegistryUnavailable: If registries do not answer; the message names them and the runs that use them.
        ConfigurationError: If the registries cannot be determined.
    """
    items, unreachable = [], []
    addresses = _addresses(root, runs)
    _check_gone(addresses, gone)
    for uri, names in addresses.items():
        if is_gone(uri, gone):
            continue
        try:
            items += _registered_at(root, uri)
        except ConfigurationError:  # the root was moved; the message has the remedy
            raise
        except Exception as error:
            unreachable.append(f"{without_password(uri)} ({_used_by(names)}): {_error_text(error)}")
    if unreachable:
        raise RegistryUnavailable(
            "Nothing is deleted, because the origins of the registered models are unknown. No answer from "
            f"{'; '.join(unreachable)}. Start it, or set its credentials (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN), and retry. If it no longer exists, with its models: --registry-gone ADDRESS."
        )
    by_run_id, by_mlflow_run, by_name = {}, {}, {}
    for model, item in items:
        words = f"version {item.version} of model '{model}'"
        run_id = item.tags.get(POLICY_TAG, "").rpartition("/")[0]
        if run_id:
            by_run_id[run_id] = words
        elif "rltrack.run" in item.tags:
            by_name[item.tags["rltrack.run"]] = words
        if item.run_id is not None:
            by_mlflow_run[item.run_id] = words
    return Origins(by_run_id, by_mlflow_run, by_name)


def delivered_to(run: RunDirectory) -> str | None:
    """Return the address of the MLflow that has this run; None if it was not delivered.

    Raises:
        ConfigurationError: If the file with the address cannot be read.
    """
    bookmark = read_bookmark(run)
    known = None if bookmark is None else bookmark.mlflow.state.get("tracking_uri")
    if known is None:
        return None
    destination = _destination(run)
    # the bookmark has it without its password
    return destination.tracking_uri if destination.tracking_uri is not None and destination.shown == known else known


def is_gone(uri: str, gone: Collection[str]) -> bool:
    """Whether the user named this address as one that no longer exists."""
    return uri in gone or without_password(uri) in gone


def _addresses(root: Root, runs: Sequence[RunDirectory]) -> dict[str, list[str]]:
    """Every address at which there may be models of these runs, with the names of the runs that use it."""
    found: dict[str, list[str]] = {database_uri(root.path): []}
    for uri in (resolve_destination({}).tracking_uri, os.environ.get("MLFLOW_REGISTRY_URI")):
        if uri:
            found.setdefault(uri, [])
    for run in runs:
        wanted = {_destination(run).tracking_uri or database_uri(root.path)}
        with contextlib.suppress(RltrackError):  # a journal that cannot be read: such a run is kept anyway
            wanted.add(delivered_to(run) or database_uri(root.path))
        for uri in wanted:
            found.setdefault(uri, []).append(run.name)
    return found


def _destination(run: RunDirectory) -> Destination:
    try:
        return read_destination(run) or Destination()
    except RunDamaged:
        raise ConfigurationError(
            f"{run.destination_file} cannot be read, so it is not known where the models of run {run.name} are. Restore it: a "
            'JSON object such as {"tracking_uri": "http://127.0.0.1:5000"}; or delete it, if the run goes to the root\'s own '
            "database."
        ) from None


def _check_gone(addresses: Mapping[str, Sequence[str]], gone: Collection[str]) -> None:
    known = {without_password(uri) for uri in addresses} | addresses.keys()
    unknown = [uri for uri in gone if uri not in known]
    if unknown:
        used = ", ".join(sorted(without_password(uri) for uri in addresses))
        raise ConfigurationError(f"--registry-gone {unknown[0]}: no run uses that address. In use: {used}.")


class _RegistryAt(ModelRegistry):
    """The registry at an address itself, whatever ``MLFLOW_REGISTRY_URI`` says."""

    @functools.cached_property
    def client(self) -> MlflowClient:
        """MLflow's client for this address."""
        return MlflowClient(self.uri, self.uri)


def _registered_at(root: Root, uri: str) -> list[tuple[str, Registered]]:
    """Return every registered version there, with its model's name; in a thread, since a server that is down may block."""
    own = same_address(uri, database_uri(root.path))
    registry = _RegistryAt(root, Destination() if own else Destination(uri))
    answers: queue.Queue[list[tuple[str, Registered]] | Exception | None] = queue.Queue()

    def ask() -> None:
        try:
            if not own:  # which may not be there yet
                _check_database(uri)
            for name in registry.names():
                answers.put([(name, item) for item in registry.versions(name)])
            answers.put(None)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name="rltrack-registry", daemon=True).start()
    found: list[tuple[str, Registered]] = []
    while True:
        try:
            answer = answers.get(timeout=SILENCE_SECONDS)
        except queue.Empty:
            raise TimeoutError(f"no answer for {SILENCE_SECONDS:.0f} s") from None
        if answer is None:
            return found
        if isinstance(answer, Exception):
            raise answer
        found += answer


def _check_database(uri: str) -> None:
    """Connect once. MLflow would create an empty database for a missing file, and retry a server for most of an hour.

    While it retries, it holds a lock that blocks calls for all other databases.
    """
    address = urlsplit(uri)
    kind = address.scheme.partition("+")[0]
    if kind == "sqlite":
        path = sqlite_path(uri)
        if path is None or not path.is_file() or path.stat().st_size == 0:
            raise FileNotFoundError(f"there is no database {path}")
    elif kind in _DATABASE_SERVERS:
        engine = sqlalchemy.create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def _used_by(names: Sequence[str]) -> str:
    if not names:
        return "set in the environment"
    more = f" and {len(names) - _SHOWN_RUNS} more" if len(names) > _SHOWN_RUNS else ""
    return f"used by {', '.join(names[:_SHOWN_RUNS])}{more}"


def _error_text(error: Exception) -> str:
    cause = error.__cause__ or error
    return without_password(" ".join(str(cause).split()))[:300] or type(cause).__name__
