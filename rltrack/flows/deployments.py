"""What an installation deploys on a Prefect server: a work pool, deployments and automations.

::

    read the file of deployments, and what the server has under the same names
    refuse, before anything is changed, if something there was made by somebody else
    create what is missing; of what is there, update only what follows from the code (entrypoint, form of the parameters)
    keep what people changed on the server (parameters, schedules, limits, descriptions), and say how it differs from the file

With ``overwrite`` the file wins. What was deleted on the server stays deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import resume_flow_run, suspend_flow_run
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from rltrack.errors import ConfigurationError, RltrackError
from rltrack.files import replace_text
from rltrack.flows import automations, work_pool
from rltrack.flows.installation import DEFAULT_NAME, OURS, Installation, Step, is_unmarked
from rltrack.flows.server import ServerFolder
from rltrack.plain_data import differences
from rltrack.runs import Root


@dataclass(slots=True)
class _Entry:
    """A deployment of the file, and what the server has under its name."""

    data: dict[str, Any]
    flow: str
    schema: dict[str, Any]
    found: DeploymentResponse | None = None
    id: UUID = field(default_factory=uuid4)
    """Of the one that is found; before one is made, a stand-in for its id."""

    @property
    def name(self) -> str:
        return str(self.data["name"])

    @property
    def full_name(self) -> str:
        return f"{self.flow}/{self.name}"

    @property
    def parameter_openapi_schema(self) -> dict[str, Any]:
        return self.schema


def prefect_file() -> Path:
    """Return the file with rltrack's own deployments."""
    return Path(__file__).with_name("prefect.yaml")


def deploy(
    root: Root,
    installation: Installation,
    file: Path | None = None,
    *,
    pool: str | None = None,
    overwrite: bool = False,
    adopt: bool = False,
    dry_run: bool = False,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Step]:
    """Make what is missing on the server that PREFECT_API_URL names, and update what follows from the code.

    Args:
        root: Remembers what was made on which server.
        installation: Whose deployments they are.
        file: Prefect's file of deployments; omitted: rltrack's own. Deployments with the tag ``rltrack`` come back by themselves.
        pool: An existing work pool to use, which is left as it is; omitted: the installation's own.
        overwrite: Put the file's parameters, schedules and limits in the place of the server's, and make again what was deleted.
        adopt: Take over what an rltrack without installations made.
        dry_run: Change nothing.
        log: Where Prefect's own words go; omitted: to the terminal.
        environment: Of Prefect's command.

    Returns:
        What is done, or would be.

    Raises:
        ConfigurationError: If something of that name was made by somebody else; nothing was changed.
        RltrackError: If Prefect refuses.
    """
    path = (file or prefect_file()).absolute()
    with get_client(sync_client=True) as client:
        made = _Made(root, client, installation)
        data, entries = _read(client, path, installation, pool)
        steps = [*work_pool.plan(client, installation, pool, adopt=adopt, overwrite=overwrite)]
        problems = [*work_pool.problems(client, installation, pool, adopt=adopt)]
        chosen: list[_Entry] = []
        foreign: list[_Entry] = []
        for entry in entries:
            found = entry.found
            if found is None and made.knows(f"deployment {entry.full_name}") and not overwrite:
                steps.append(Step("keep", "deployment", entry.full_name, ("it was deleted on the server",)))
                continue
            chosen.append(entry)
            if found is None:
                steps.append(Step("create", "deployment", entry.full_name))
            elif installation.owns(found.tags) or (adopt and is_unmarked(found.tags)):
                unlike = tuple(_unlike(entry, found))
                stale = not overwrite and bool(_from_code(entry, found, installation))
                action = "update" if stale or (overwrite and unlike) else "keep"
                steps.append(Step(action, "deployment", entry.full_name, unlike))
            else:
                foreign.append(entry)
        problems += _not_ours(foreign)
        if problems:
            raise ConfigurationError("\n".join(["Nothing was changed on the Prefect server.", *problems]))
        if not dry_run:
            work_pool.make(client, installation, pool, overwrite=overwrite)
            _apply(client, path, data, chosen, installation, overwrite, log, environment)
        wanted = automations.automations_of(installation, _by_flow(client, installation, chosen))
        steps += _put_automations(client, made, installation, wanted, overwrite=overwrite, adopt=adopt, dry_run=dry_run)
        if not dry_run:
            made.remember(steps)
    return steps


def undeploy(root: Root, installation: Installation, *, dry_run: bool = False) -> list[Step]:
    """Remove from the server what carries the installation's mark: automations, deployments, and then its work pool.

    Flow runs stay. The work pool stays if deployments of others use it.
    """
    steps = []
    with get_client(sync_client=True) as client:
        for known in _own_automations(client, installation):
            steps.append(Step("remove", "automation", known.name))
            if not dry_run:
                client.delete_automation(known.id)
        flows = {flow.id: flow.name for flow in _all(client.read_flows)}
        others = False
        for deployment in _all(client.read_deployments):
            if installation.owns(deployment.tags):
                steps.append(Step("remove", "deployment", f"{flows.get(deployment.flow_id, '?')}/{deployment.name}"))
                if not dry_run:
                    client.delete_deployment(deployment.id)
            else:
                others = others or deployment.work_pool_name == installation.work_pool
        steps += work_pool.remove(client, installation, in_use=others, dry_run=dry_run)
        if not dry_run:
            _Made(root, client, installation).forget()
    return steps


# ---- deployments ----


def _read(
    client: SyncPrefectClient, path: Path, installation: Installation, pool: str | None
) -> tuple[dict[str, Any], list[_Entry]]:
    """The file, with this installation's names and mark, and what the server has of it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        listed = [dict(item) for item in data.get("deployments") or []]
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is not Prefect's file of deployments: {' '.join(str(error).split())}."
        ) from None
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
        entry = _Entry(item, flow.name, parameter_schema(flow).model_dump(exclude_unset=True, mode="json"))
        with contextlib.suppress(ObjectNotFound):
            entry.found = client.read_deployment_by_name(entry.full_name)
            entry.id = entry.found.id
        entries.append(entry)
    return {**data, "deployments": [entry.data for entry in entries]}, entries


def _not_ours(entries: Sequence[_Entry]) -> Iterator[str]:
    """Say whose deployments stand in the way, and what to do about each kind."""
    found = [(entry.full_name, entry.found.tags) for entry in entries if entry.found is not None]
    unmarked = [name for name, tags in found if is_unmarked(tags)]
    others = [name for name, tags in found if not is_unmarked(tags)]
    if unmarked:
        yield (
            f"Made by an earlier rltrack, which did not say from where: {', '.join(unmarked)}. If they are yours, take them over: "
            "rltrack deploy --adopt. If another team uses them, give yours another name: rltrack deploy --name NAME."
        )
    if others:
        yield (
            f"Made by another installation, or not rltrack's: {', '.join(others)}. Give yours another name: rltrack deploy --name "
            "NAME. If the root that made them is gone, delete them on Prefect's page."
        )


def _from_code(entry: _Entry, found: DeploymentResponse, installation: Installation) -> dict[str, Any]:
    """What of a deployment follows from the code, and is not so on the server."""
    tags = [
        *found.tags,
        *(tag for tag in (OURS, installation.mark) if tag in entry.data["tags"] and tag not in found.tags),
    ]
    wanted = {"entrypoint": entry.data["entrypoint"], "parameter_openapi_schema": entry.schema, "tags": tags}
    return {key: value for key, value in wanted.items() if getattr(found, key) != value}


def _unlike(entry: _Entry, found: DeploymentResponse) -> list[str]:
    """How the server's parameters, schedules and limits differ from the file's; what the file leaves open is not compared."""
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


def _apply(
    client: SyncPrefectClient,
    path: Path,
    data: Mapping[str, Any],
    entries: Sequence[_Entry],
    installation: Installation,
    overwrite: bool,
    log: Path | None,
    environment: Mapping[str, str] | None,
) -> None:
    """Update what is there and make what is missing; the latter by Prefect's own command, which knows everything in its file."""
    for entry in entries:
        if entry.found is not None and (stale := _from_code(entry, entry.found, installation)):
            client.update_deployment(entry.found.id, DeploymentUpdate(**stale))
    new = [entry for entry in entries if entry.found is None or (overwrite and _unlike(entry, entry.found))]
    if new:
        _prefect_deploy(path, {**data, "deployments": [entry.data for entry in new]}, log, environment)
    for entry in new:
        entry.found = client.read_deployment_by_name(entry.full_name)
        entry.id = entry.found.id


def _prefect_deploy(
    path: Path, data: Mapping[str, Any], log: Path | None, environment: Mapping[str, str] | None
) -> None:
    with (
        tempfile.TemporaryDirectory() as scratch,
        open(log, "ab") if log is not None else contextlib.nullcontext() as output,
    ):
        file = Path(scratch) / "prefect.yaml"
        file.write_text(yaml.safe_dump(dict(data), sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        done = subprocess.run(
            command, env=dict(environment or os.environ), stdin=subprocess.DEVNULL, stdout=output or subprocess.PIPE,
            stderr=output or subprocess.STDOUT, cwd=path.parent,
        )  # fmt: skip
    if done.returncode != 0:
        said = f"see {log}" if log else " ".join((done.stdout or b"").decode(errors="replace").split())[-1500:]
        raise RltrackError(f"Prefect refused the deployments of {path}: {said}")


def _by_flow(client: SyncPrefectClient, installation: Installation, entries: Sequence[_Entry]) -> dict[str, list[Any]]:
    """The installation's deployments that come back by themselves, those of other files too, by their flow."""
    flows = {flow.id: flow.name for flow in _all(client.read_flows)}
    found = {
        f"{flows[item.flow_id]}/{item.name}": (flows[item.flow_id], item)
        for item in _all(client.read_deployments)
        if installation.owns(item.tags) and OURS in item.tags
    }
    for entry in entries:  # not there yet, or not marked yet
        if OURS in (entry.data["tags"] if entry.found is None else entry.found.tags):
            found.setdefault(entry.full_name, (entry.flow, entry))
    grouped: dict[str, list[Any]] = {}
    for flow, item in found.values():
        grouped.setdefault(flow, []).append(item)
    return grouped


# ---- automations ----


def _put_automations(
    client: SyncPrefectClient,
    made: _Made,
    installation: Installation,
    wanted: Sequence[AutomationCore],
    *,
    overwrite: bool,
    adopt: bool,
    dry_run: bool,
) -> list[Step]:
    """Make or update automations; one that a person changed is kept, and one that was switched off stays off."""
    known = {item.name: item for item in _own_automations(client, installation)}
    if adopt:
        known = {item.name: item for item in _unmarked_automations(client)} | known
    steps = []
    for item in wanted:
        there = known.get(item.name)
        if there is None:
            if made.knows(f"automation {item.name}") and not overwrite:
                steps.append(Step("keep", "automation", item.name, ("it was deleted on the server",)))
                continue
            steps.append(Step("create", "automation", item.name))
            if not dry_run:
                client.create_automation(item)
        elif automations.fingerprint(there) == automations.fingerprint(item):
            steps.append(Step("keep", "automation", item.name))
        elif automations.was_edited(there) and not overwrite:
            steps.append(Step("keep", "automation", item.name, ("it was changed on the server",)))
        else:
            steps.append(Step("update", "automation", item.name))
            if not dry_run:
                client.delete_automation(there.id)
                client.create_automation(item.model_copy(update={"enabled": there.enabled}))
    return steps


def _own_automations(client: SyncPrefectClient, installation: Installation) -> list[Automation]:
    return [item for item in _all(client.read_automations) if installation.owns(item.tags)]


def _unmarked_automations(client: SyncPrefectClient) -> list[Automation]:
    """Those that an rltrack without installations made: by their names, and with no tags."""
    return [item for item in _all(client.read_automations) if automations.has_own_name(item.name) and not item.tags]


# ---- what was made before ----


class _Made:
    """What a root made on a server, so that what a person deleted there is not made again."""

    def __init__(self, root: Root, client: SyncPrefectClient, installation: Installation) -> None:
        self._file = root.path / "deployed.json"
        address = str(client.api_url).rstrip("/")
        self._server = "own" if address == ServerFolder(root.path).address() else address
        try:
            self._names: dict[str, list[str]] = dict(json.loads(self._file.read_text()))
        except (OSError, ValueError, TypeError):
            self._names = {}
        is_new = not any(installation.owns(item.tags) for item in _all(client.read_deployments))
        self._known = set() if is_new else set(self._names.get(self._server, ()))

    def knows(self, name: str) -> bool:
        """Whether it was made there before, and the server still has something of this installation."""
        return name in self._known

    def remember(self, steps: Sequence[Step]) -> None:
        """Remember the names of everything that was made or kept."""
        self._names[self._server] = sorted(self._known | {f"{step.what} {step.name}" for step in steps})
        self._write()

    def forget(self) -> None:
        """Forget the server."""
        if self._names.pop(self._server, None) is not None:
            self._write()

    def _write(self) -> None:
        replace_text(self._file, json.dumps(self._names, indent=1))


def _all(read: Any) -> list[Any]:
    """Every page of what a client's method reads."""
    found: list[Any] = []
    while page := read(limit=200, offset=len(found)):
        found += page
        if len(page) < 200:
            break
    return found


# ---- flow runs of the work pool ----


def running_flow_runs(installation: Installation) -> list[FlowRun]:
    """Return the work pool's flow runs that run now."""
    return _flow_runs(installation, [StateType.RUNNING])


def _flow_runs(installation: Installation, states: list[StateType], ids: list[UUID] | None = None) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[installation.work_pool])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
                id=FlowRunFilterId(any_=ids) if ids else None,
            ),
        )


def suspend(flow_run_id: UUID) -> None:
    """Ask a flow run to suspend at its next boundary; one that cannot is left to its own end."""
    with contextlib.suppress(RuntimeError):
        suspend_flow_run(flow_run_id=flow_run_id)


def let_suspended_go_on(installation: Installation, ids: Sequence[str] | None) -> None:
    """Let flow runs go on that were suspended, under the same ids; None: all that are suspended."""
    known = None if ids is None else [UUID(flow_run) for flow_run in ids]
    for flow_run in _flow_runs(installation, [StateType.PAUSED], known) if known != [] else []:
        with contextlib.suppress(RuntimeError):
            resume_flow_run(flow_run.id)
