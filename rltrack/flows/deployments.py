"""Deploys an installation on a Prefect server: a work pool, deployments and automations.

::

    read the deployment file, and what the server has under the same names
    refuse, before anything is changed, if something there belongs to another installation
    create what is missing; of what exists, update only what follows from the code (entrypoint, parameter schema)
    keep what was changed on the server (parameters, schedules, limits, descriptions), and show the differences from the file

With ``overwrite`` the file takes precedence. What was deleted on the server stays deleted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate

from rltrack.errors import ConfigurationError, RltrackError
from rltrack.flows import automations, work_pool
from rltrack.flows.deployed import Deployed, every
from rltrack.flows.deployment_file import Entry, deployment_changes, prefect_file, read_file, stale_code
from rltrack.flows.installation import OURS, Installation, Step, is_unmarked
from rltrack.flows.notifications import notifications
from rltrack.processes import python_command
from rltrack.runs import Root


def deploy(
    root: Root,
    installation: Installation,
    file: Path | None = None,
    *,
    pool: str | None = None,
    notify: Sequence[str] = (),
    overwrite: bool = False,
    adopt: bool = False,
    dry_run: bool = False,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Step]:
    """Create what is missing on the server at PREFECT_API_URL, and update what follows from the code.

    Args:
        root: Stores what was created on which server.
        installation: The owner of the deployments.
        file: Prefect's deployment file; omitted: rltrack's own. Interrupted runs of deployments with the tag ``rltrack`` are
            restarted automatically.
        pool: An existing work pool to use, which is not changed; omitted: the installation's own.
        notify: Blocks on the server (``TYPE/NAME``) that messages are sent through; those of earlier calls stay.
        overwrite: Replace the server's parameters, schedules and limits by the file's, and recreate what was deleted.
        adopt: Take over what an rltrack without installations created.
        dry_run: Change nothing.
        log: File for Prefect's output; omitted: the terminal.
        environment: Environment variables of Prefect's command.

    Returns:
        What is done, or would be.

    Raises:
        ConfigurationError: If something of that name belongs to another installation; nothing was changed.
        RltrackError: If Prefect refuses.
    """
    path = (file or prefect_file()).absolute()
    with get_client(sync_client=True) as client:
        made = Deployed(root, client, installation)
        data, entries = read_file(client, path, installation, pool)
        steps = [*work_pool.plan(client, installation, pool, adopt=adopt, overwrite=overwrite)]
        problems = [*work_pool.problems(client, installation, pool, adopt=adopt)]
        chosen: list[Entry] = []
        foreign: list[Entry] = []
        for entry in entries:
            found = entry.found
            if found is None and made.knows(f"deployment {entry.full_name}") and not overwrite:
                steps.append(Step("keep", "deployment", entry.full_name, ("it was deleted on the server",)))
                continue
            chosen.append(entry)
            if found is None:
                steps.append(Step("create", "deployment", entry.full_name))
            elif installation.owns(found.tags) or (adopt and is_unmarked(found.tags)):
                differs = tuple(deployment_changes(entry, found))
                stale = not overwrite and bool(stale_code(entry, found, installation))
                action = "update" if stale or (overwrite and differs) else "keep"
                steps.append(Step(action, "deployment", entry.full_name, differs))
            else:
                foreign.append(entry)
        problems += _not_ours(foreign)
        if problems:
            raise ConfigurationError("\n".join(["Nothing was changed on the Prefect server.", *problems]))
        if not dry_run:
            work_pool.make(client, installation, pool, overwrite=overwrite)
            _apply(client, path, data, chosen, installation, overwrite, log, environment)
        by_flow = _by_flow(client, installation, chosen)
        wanted = automations.automations_of(installation, by_flow)
        everything = [item for items in by_flow.values() for item in items]
        wanted += automations.marked(installation, notifications(client, notify, everything))
        steps += automations.put(client, made, installation, wanted, overwrite=overwrite, adopt=adopt, dry_run=dry_run)
        if not dry_run:
            made.remember(steps)
    return steps


def undeploy(root: Root, installation: Installation, *, dry_run: bool = False) -> list[Step]:
    """Remove from the server what has the installation's mark: automations, deployments, and then its work pool.

    Flow runs stay. The work pool stays if deployments of others use it.
    """
    steps = []
    with get_client(sync_client=True) as client:
        for known in automations.own(client, installation):
            steps.append(Step("remove", "automation", known.name))
            if not dry_run:
                client.delete_automation(known.id)
        flows = {flow.id: flow.name for flow in every(client.read_flows)}
        others = False
        for deployment in every(client.read_deployments):
            if installation.owns(deployment.tags):
                steps.append(Step("remove", "deployment", f"{flows.get(deployment.flow_id, '?')}/{deployment.name}"))
                if not dry_run:
                    client.delete_deployment(deployment.id)
            else:
                others = others or deployment.work_pool_name == installation.work_pool
        steps += work_pool.remove(client, installation, in_use=others, dry_run=dry_run)
        if not dry_run:
            Deployed(root, client, installation).forget()
    return steps


# ---- deployments ----


def _not_ours(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield which deployments belong to others, and the remedy for each kind."""
    found = [(entry.full_name, entry.found.tags) for entry in entries if entry.found is not None]
    unmarked = [name for name, tags in found if is_unmarked(tags)]
    others = [name for name, tags in found if not is_unmarked(tags)]
    if unmarked:
        yield (
            f"Created by an earlier rltrack, which did not record the root: {', '.join(unmarked)}. If they are yours, take them "
            "over: rltrack deploy --adopt. If another team uses them, give yours another name: rltrack deploy --name NAME."
        )
    if others:
        yield (
            f"Created by another installation, or not by rltrack: {', '.join(others)}. Give yours another name: rltrack deploy "
            "--name NAME. If the root that created them no longer exists, delete them on Prefect's page."
        )


def _apply(
    client: SyncPrefectClient,
    path: Path,
    data: Mapping[str, Any],
    entries: Sequence[Entry],
    installation: Installation,
    overwrite: bool,
    log: Path | None,
    environment: Mapping[str, str] | None,
) -> None:
    """Update what exists and create what is missing; the latter by Prefect's own command, which supports the whole file."""
    for entry in entries:
        if entry.found is not None and (stale := stale_code(entry, entry.found, installation)):
            client.update_deployment(entry.found.id, DeploymentUpdate(**stale))
    new = [entry for entry in entries if entry.found is None or (overwrite and deployment_changes(entry, entry.found))]
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
        command = python_command("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file))
        done = subprocess.run(
            command, env=dict(environment or os.environ), stdin=subprocess.DEVNULL, stdout=output or subprocess.PIPE,
            stderr=output or subprocess.STDOUT, cwd=path.parent,
        )  # fmt: skip
    if done.returncode != 0:
        output_text = f"see {log}" if log else " ".join((done.stdout or b"").decode(errors="replace").split())[-1500:]
        raise RltrackError(f"Prefect refused the deployments of {path}: {output_text}")


def _by_flow(client: SyncPrefectClient, installation: Installation, entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return the installation's deployments that are restarted automatically, also those of other files, by flow."""
    flows = {flow.id: flow.name for flow in every(client.read_flows)}
    found = {
        f"{flows[item.flow_id]}/{item.name}": (flows[item.flow_id], item)
        for item in every(client.read_deployments)
        if installation.owns(item.tags) and OURS in item.tags
    }
    for entry in entries:  # not created yet, or not marked yet
        if OURS in (entry.data["tags"] if entry.found is None else entry.found.tags):
            found.setdefault(entry.full_name, (entry.flow, entry))
    grouped: dict[str, list[Any]] = {}
    for flow, item in found.values():
        grouped.setdefault(flow, []).append(item)
    return grouped
