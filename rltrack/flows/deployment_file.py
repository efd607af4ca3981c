"""Prefect's deployment file as an installation uses it, and its differences from the server."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from rltrack.errors import ConfigurationError
from rltrack.flows.installation import DEFAULT_NAME, OURS, Installation
from rltrack.plain_data import differences


@dataclass(slots=True)
class Entry:
    """A deployment of the file, and the server's deployment of the same name."""

    data: dict[str, Any]
    flow: str
    schema: dict[str, Any]
    found: DeploymentResponse | None = None
    id: UUID = field(default_factory=uuid4)
    """Id on the server; a placeholder before the deployment is created."""

    @property
    def name(self) -> str:
        """Name of the deployment."""
        return str(self.data["name"])

    @property
    def full_name(self) -> str:
        """Full name, as in Prefect's commands: ``train/train``."""
        return f"{self.flow}/{self.name}"

    @property
    def parameter_openapi_schema(self) -> dict[str, Any]:
        """The schema of its parameters, under the attribute name of a server's deployment."""
        return self.schema


def prefect_file() -> Path:
    """Return the file with rltrack's own deployments."""
    return Path(__file__).with_name("prefect.yaml")


def read_file(
    client: SyncPrefectClient, path: Path, installation: Installation, pool: str | None
) -> tuple[dict[str, Any], list[Entry]]:
    """Return the file with this installation's names and mark, and each deployment with its counterpart on the server.

    Raises:
        ConfigurationError: If it is not a deployment file, or a flow in it cannot be loaded.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        listed = [dict(item) for item in data.get("deployments") or []]
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a Prefect deployment file: {' '.join(str(error).split())}.") from None
    entries = []
    for item in listed:
        if not item.get("name") or not item.get("entrypoint"):
            raise ConfigurationError(f"{path}: each deployment needs a name and an entrypoint, found {item!r:.200}.")
        if path == prefect_file():
            item["name"] = installation.named(str(item["name"]))
        item["tags"] = [*(item.get("tags") or []), installation.mark]
        own_pool = {**(item.get("work_pool") or {})}
        if own_pool.get("name", DEFAULT_NAME) == DEFAULT_NAME:
            own_pool["name"] = pool or installation.work_pool
        item["work_pool"] = own_pool
        with contextlib.chdir(path.parent):
            try:
                flow: Any = load_flow_from_entrypoint(str(item["entrypoint"]))
            except Exception as error:
                raise ConfigurationError(
                    f"{path}: the flow {item['entrypoint']} of deployment '{item['name']}' cannot be loaded: "
                    f"{type(error).__name__}: {' '.join(str(error).split())}."
                ) from None
        entry = Entry(item, flow.name, parameter_schema(flow).model_dump(exclude_unset=True, mode="json"))
        with contextlib.suppress(ObjectNotFound):
            entry.found = client.read_deployment_by_name(entry.full_name)
            entry.id = entry.found.id
        entries.append(entry)
    return {**data, "deployments": [entry.data for entry in entries]}, entries


def stale_code(entry: Entry, found: DeploymentResponse, installation: Installation) -> dict[str, Any]:
    """Return the properties of a deployment that follow from the code and differ on the server."""
    tags = [
        *found.tags,
        *(tag for tag in (OURS, installation.mark) if tag in entry.data["tags"] and tag not in found.tags),
    ]
    wanted = {"entrypoint": entry.data["entrypoint"], "parameter_openapi_schema": entry.schema, "tags": tags}
    return {key: value for key, value in wanted.items() if getattr(found, key) != value}


def deployment_changes(entry: Entry, found: DeploymentResponse) -> list[str]:
    """Return the differences between file and server in parameters, schedules and limits that the file gives."""
    limit = entry.data.get("concurrency_limit")
    ours: dict[str, Any] = {
        "parameters": entry.data.get("parameters") or {},
        "schedules": {
            _slug(item, index): {"active": True, **item} for index, item in enumerate(entry.data.get("schedules") or [])
        },
        "paused": bool(entry.data.get("paused", False)),
        "description": (entry.data.get("description") or found.description or "").strip(),
        "work_pool": entry.data["work_pool"]["name"],
        "concurrency_limit": limit.get("limit") if isinstance(limit, Mapping) else limit,
    }
    on_server = found.global_concurrency_limit
    theirs: dict[str, Any] = {
        "parameters": found.parameters,
        "schedules": {
            _slug({"slug": item.slug}, index): {
                **item.schedule.model_dump(mode="json"), "active": item.active, "slug": item.slug, "parameters": item.parameters
            }
            for index, item in enumerate(found.schedules)
        },
        "paused": found.paused,
        "description": (found.description or "").strip(),
        "work_pool": found.work_pool_name,
        "concurrency_limit": None if on_server is None else on_server.limit,
    }  # fmt: skip
    for slug, schedule in theirs["schedules"].items():  # defaults that Prefect fills in
        asked = ours["schedules"].get(slug)
        if asked is not None:
            theirs["schedules"][slug] = {key: schedule.get(key) for key in asked}
    return differences(ours, theirs)


def _slug(schedule: Mapping[str, Any], index: int) -> str:
    return str(schedule.get("slug") or index)
