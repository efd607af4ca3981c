"""The work pool of an installation: its workers start rltrack's flows, and ignore job variables that would run other code.

Prefect's own template for processes lets a flow run set ``command``, ``env`` and ``working_dir``; this one has none of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound

from rltrack.flows.installation import Installation, Step

_DESCRIPTION = "rltrack's trainings"
_REFUSED = ("command", "env", "working_dir")


def template() -> dict[str, Any]:
    """Return the base job template: Prefect's for processes, without command, environment and folder."""
    from prefect.workers.process import ProcessWorker

    made = copy.deepcopy(ProcessWorker.get_default_base_job_template())
    for name in _REFUSED:
        made["job_configuration"].pop(name, None)
        made["variables"]["properties"].pop(name, None)
    made["variables"]["additionalProperties"] = False
    # a worker that dies must not take its runs with it through a broken pipe
    made["variables"]["properties"]["stream_output"]["default"] = False
    return made


def plan(
    client: SyncPrefectClient, installation: Installation, pool: str | None, *, adopt: bool, overwrite: bool
) -> Iterator[Step]:
    """Yield the step for the pool: use an existing one, keep or update the own one, or create it."""
    found = _read(client, pool or installation.work_pool)
    if pool is not None:
        if found is not None:
            yield Step("keep", "work pool", pool, ("it is used as it is",))
    elif found is None:
        yield Step("create", "work pool", installation.work_pool)
    elif not _is_ours(found, installation):
        if adopt:
            yield Step("update", "work pool", found.name, ("it is taken over, with rltrack's template",))
    elif takes := _refused(found):
        risk = f"its template was changed on the server: a run's job variables may give {', '.join(takes)}"
        yield Step("update" if overwrite else "keep", "work pool", found.name, (risk,))
    else:
        yield Step("keep", "work pool", found.name)


def problems(client: SyncPrefectClient, installation: Installation, pool: str | None, *, adopt: bool) -> Iterator[str]:
    """Yield why the pool cannot be used."""
    found = _read(client, pool or installation.work_pool)
    if pool is not None:
        if found is None:
            yield f"There is no work pool {pool}. Create it (prefect work-pool create {pool} --type …), or leave out --pool."
    elif found is not None and not _is_ours(found, installation) and not (adopt and found.description == _DESCRIPTION):
        yield (
            f"Work pool {found.name} was not created from this root. To use its workers for your runs: rltrack deploy --pool "
            f"{found.name}. For your own pool: rltrack deploy --name NAME. If an earlier rltrack of yours created it: rltrack "
            "deploy --adopt."
        )


def make(client: SyncPrefectClient, installation: Installation, pool: str | None, *, overwrite: bool) -> None:
    """Create the pool, take it over, or repair its template."""
    if pool is not None:
        return
    name, description = installation.work_pool, f"{_DESCRIPTION} [{installation.mark}]"
    found = _read(client, name)
    if found is None:
        made = WorkPoolCreate(name=name, type="process", description=description, base_job_template=template())
        client.create_work_pool(made)
    elif not _is_ours(found, installation) or (overwrite and _refused(found)):
        client.update_work_pool(name, WorkPoolUpdate(description=description, base_job_template=template()))


def remove(client: SyncPrefectClient, installation: Installation, *, in_use: bool, dry_run: bool) -> Iterator[Step]:
    """Remove the pool if it is the installation's, and no other deployments use it."""
    found = _read(client, installation.work_pool)
    if found is None or not _is_ours(found, installation):
        return
    if in_use:
        yield Step("keep", "work pool", found.name, ("deployments of others use it",))
        return
    if not dry_run:
        client.delete_work_pool(found.name)
    yield Step("remove", "work pool", found.name)


def pause(installation: Installation, paused: bool) -> bool:
    """Pause the pool, so that no worker starts a run, or unpause it; return whether that changed anything."""
    with get_client(sync_client=True) as client:
        found = _read(client, installation.work_pool)
        if found is None or found.is_paused == paused:
            return False
        client.update_work_pool(found.name, WorkPoolUpdate(is_paused=paused))
        return True


def _read(client: SyncPrefectClient, name: str) -> WorkPool | None:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None


def _is_ours(pool: WorkPool, installation: Installation) -> bool:
    return installation.mark in (pool.description or "")


def _refused(pool: WorkPool) -> list[str]:
    """Return the job variables of the pool that rltrack's template does not have."""
    properties = pool.base_job_template.get("variables", {}).get("properties", {})
    return [name for name in _REFUSED if name in properties]
