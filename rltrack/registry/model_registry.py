"""Registered models in MLflow: versions, the aliases ``champion`` and ``challenger``, and a history without gaps.

The history is stored in the registered model itself, one short numbered tag for each event; its description shows it. Moving the
alias is the commit point of a promotion: the decision is in the version's tags before, the event is written after. If a process
dies in between, `repair` adds the event from the decision.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, Concatenate, ParamSpec, TypeVar

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from rltrack.errors import ConfigurationError, ModelNotFound, RegistryUnavailable, RltrackError, RunBusy, did_you_mean
from rltrack.files import lock_holder, take_lock
from rltrack.registry.registered import CHAMPION, EVENT_TAG, Event, Registered, as_markdown, event_key
from rltrack.runs import Root
from rltrack.tracking.destination import Destination, as_seen_from, resolve_destination, without_password
from rltrack.tracking.sinks.answers import explain
from rltrack.tracking.sinks.embedded import database_path, database_uri, ensure_database, moved_from

LOCK_SECONDS = 3600.0
"""How long a promotion waits for another one of the same model."""

LINKS_TAG = "mlflow.modelVersions"
"""Tag of a stored policy: the versions of registered models that it is, in JSON."""

Notify = Callable[[str], None]

P = ParamSpec("P")
T = TypeVar("T")


def _explained(method: Callable[Concatenate[ModelRegistry, P], T]) -> Callable[Concatenate[ModelRegistry, P], T]:
    """Turn any error of a database or server into `RegistryUnavailable`."""

    @functools.wraps(method)
    def wrapper(self: ModelRegistry, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except RltrackError:
            raise
        except Exception as error:
            message, _ = explain(error, without_password(self.uri))
            raise RegistryUnavailable(f"The model registry: {message} Nothing was decided.") from error

    return wrapper


class ModelRegistry:
    """The registered models on one server or database.

    Args:
        root: The root, for its own database where nothing else is given.
        destination: Where; omitted: ``MLFLOW_TRACKING_URI``, or the root's own database.
    """

    def __init__(self, root: Root, destination: Destination | None = None) -> None:
        self.root = root
        given = as_seen_from(root.path, destination or resolve_destination({})).tracking_uri
        self.is_own = given is None
        if given is None:
            old = moved_from(root.path)
            if old is not None:
                raise ConfigurationError(
                    f"The root was moved from {old} to {root.path}. Repair its database first: "
                    f"rltrack relocate --root {quote(str(root.path))}"
                )
        self.uri = given or database_uri(root.path)

    @functools.cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; the root's own database is made here if it is missing."""
        if self.is_own:
            ensure_database(self.root.path)
        return MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI"))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever stored here; checking does not create a database."""
        return self.is_own and not database_path(self.root.path).exists()

    # ---- reading ----

    @_explained
    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        return (
            [] if self.is_empty else sorted(model.name for model in self._pages(self.client.search_registered_models))
        )

    @_explained
    def aliases(self, name: str) -> dict[str, int]:
        """Return a model's aliases; none for a model that does not exist."""
        try:
            found = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: int(version) for alias, version in found.items()}

    @_explained
    def versions(self, name: str) -> list[Registered]:
        """Return a model's versions, oldest first."""
        found = [_registered(item) for item in self._pages(self.client.search_model_versions, f"name='{name}'")]
        return sorted(found, key=lambda item: item.version)

    def champion(self, name: str) -> Registered | None:
        """Return the champion, or None if there is none yet."""
        number = self.aliases(name).get(CHAMPION)
        return None if number is None else self.version(name, number)

    @_explained
    def pointed_to(self, name: str, alias: str) -> Registered | None:
        """Return the version that an alias points to, by one request; None without one."""
        try:
            item = self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no such alias
                return None
            raise
        return _registered(item)

    def by_alias(self, name: str, alias: str) -> Registered:
        """Return the version that an alias points to.

        Raises:
            ModelNotFound: If there is no such model or alias.
        """
        self.check_exists(name)
        aliases = self.aliases(name)
        if alias not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            remedy = f" Promote a run: rltrack promote RUN --model {name}." if alias == CHAMPION else ""
            raise ModelNotFound(
                f"Model '{name}' has no {alias}.{did_you_mean(alias, aliases)} Its aliases: {known}.{remedy}"
            )
        return self.version(name, aliases[alias])

    def version(self, name: str, number: int) -> Registered:
        """Return one version.

        Raises:
            ModelNotFound: If there is none.
        """
        self.check_exists(name)
        versions = self.versions(name)
        for item in versions:
            if item.version == number:
                return item
        known = ", ".join(str(item.version) for item in versions) or "none"
        raise ModelNotFound(f"Model '{name}' has no version {number}. Its versions: {known}.")

    def check_exists(self, name: str) -> None:
        """Raise `ModelNotFound` if there is no such model."""
        names = self.names()
        if name not in names:
            known = (
                f" Models here: {', '.join(names[:20])}."
                if names
                else " There are no models yet. Make a run's policy the first: rltrack promote RUN --model NAME --floor SCORE."
            )
            raise ModelNotFound(f"No model '{name}' in {without_password(self.uri)}.{did_you_mean(name, names)}{known}")

    @_explained
    def history(self, name: str) -> list[Event]:
        """Return what happened to a model, oldest first."""
        try:
            return _events(self.client.get_registered_model(name).tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise

    def _pages(self, search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
        token = None
        while True:
            page = search(*arguments, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    # ---- writing; under the model's lock ----

    @contextlib.contextmanager
    def lock(self, name: str, wait_seconds: float, notify: Callable[[str], None]) -> Iterator[None]:
        """Lock a model: one decision at a time. First repair what an interrupted process left incomplete.

        Args:
            name: The model.
            wait_seconds: How long to wait for another process.
            notify: Called with each progress message.

        Raises:
            RunBusy: If another process holds the lock for longer.
        """
        path = self._lock_file(name)
        descriptor = take_lock(path, 0.2)
        if descriptor is None:
            notify(f"waiting for process {lock_holder(path) or 'unknown'}, which holds the lock of model '{name}'")
            descriptor = take_lock(path, wait_seconds)
        if descriptor is None:
            raise RunBusy(
                f"Process {lock_holder(path) or 'unknown'} has held the lock of model '{name}' for {wait_seconds:.0f} s. Wait "
                "for it, or end it; nothing was changed."
            )
        try:
            self.repair(name)
            yield
        finally:
            os.close(descriptor)

    def _lock_file(self, name: str) -> Path:
        """Return the lock's path: next to the root's own database; for other registries in the user's cache folder."""
        if self.is_own:
            folder = database_path(self.root.path).parent / "registry"
            file = f"{name}.lock"
        else:
            folder = Path.home() / ".cache" / "rltrack" / "registry"
            file = hashlib.sha256(f"{self.uri} {name}".encode()).hexdigest()[:24] + ".lock"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / file

    @_explained
    def repair(self, name: str) -> None:
        """Add events that an interrupted process did not write, and record changes by other programs."""
        aliases, events = self.aliases(name), self.history(name)
        written = {event.decision for event in events if event.decision}
        champion = aliases.get(CHAMPION)
        before = events[-1].champion if events else None
        for item in self.versions(name):
            decision = item.decision
            if decision is None or decision.id[:8] in written:
                continue
            if not decision.promoted:
                self.record(name, Event("refused", item.version, decision.reason, before, item.source, decision.id))
            elif champion == item.version:
                self.record(name, Event("promoted", item.version, decision.reason, champion, item.source, decision.id))
                before = champion
        if champion != before:
            word = "the alias was moved" if champion is not None else "the alias was removed"
            self.record(name, Event("moved", champion or before or 0, f"{word} by another program", champion))
        elif events:
            self._show(name)

    @_explained
    def record(self, name: str, event: Event) -> None:
        """Append an event to the history, and show it on MLflow's page of the model."""
        events = self.history(name)
        number = events[-1].number + 1 if events else 1
        text = replace(event, time=event.time or time.time()).to_tag()
        self.client.set_registered_model_tag(name, event_key(number), text)
        self._show(name)

    def _show(self, name: str) -> None:
        """Make the description show the history; a process that died between the two may have left an older one."""
        model = self.client.get_registered_model(name)
        text = as_markdown(_events(model.tags))
        if model.description != text:
            self.client.update_registered_model(name, text)

    @_explained
    def register(self, name: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> Registered:
        """Make a version with its tags, in one step; the model itself if it is the first."""
        try:
            self.client.create_registered_model(name, tags={"rltrack": "policy"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with _tracking_uri(self.uri):
            made = self.client.create_model_version(
                name, f"models:/{model_id}", run_id=run_id, tags=dict(tags), model_id=model_id
            )
        known = self.client.get_logged_model(model_id).tags.get(LINKS_TAG)
        links = [*(json.loads(known) if known else []), {"name": name, "version": int(made.version)}]
        self.client.set_logged_model_tags(model_id, {LINKS_TAG: json.dumps(links)})
        return Registered(int(made.version), model_id, run_id, dict(tags))

    @_explained
    def tag(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(name, str(version), key, value)

    @_explained
    def describe(self, name: str, version: int, text: str) -> None:
        """Set a version's description, in Markdown."""
        self.client.update_model_version(name, str(version), text)

    @_explained
    def point(self, name: str, alias: str, version: int | None) -> None:
        """Move an alias in one step; None removes it."""
        if version is None:
            self.client.delete_registered_model_alias(name, alias)
        else:
            self.client.set_registered_model_alias(name, alias, str(version))

    @_explained
    def delete(self, name: str, item: Registered) -> None:
        """Delete a version that has no alias.

        Raises:
            ConfigurationError: If it has one.
        """
        pointing = [alias for alias, version in self.aliases(name).items() if version == item.version]
        if pointing:
            raise ConfigurationError(
                f"Version {item.version} of model '{name}' is {' and '.join(pointing)}, and is not deleted. Move the alias first: "
                f"rltrack rollback {name} --to VERSION."
            )
        self.client.delete_model_version(name, str(item.version))


def _events(tags: Mapping[str, str]) -> list[Event]:
    numbers = sorted(int(key.removeprefix(EVENT_TAG)) for key in tags if key.startswith(EVENT_TAG))
    return [Event.from_tag(tags[event_key(number)], number) for number in numbers]


def _registered(item: Any) -> Registered:
    return Registered(
        int(item.version), str(item.source).removeprefix("models:/"), item.run_id or None, dict(item.tags or {})
    )


@contextlib.contextmanager
def _tracking_uri(uri: str) -> Iterator[None]:
    """MLflow's own database store looks stored models up at the process-wide address, whatever the client's is."""
    import mlflow
    from mlflow.tracking._tracking_service import utils

    before, variable = utils._tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: not set
        if variable is not None:
            os.environ["MLFLOW_TRACKING_URI"] = variable
