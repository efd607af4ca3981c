"""Seeds and trials as deployment runs: each is started once, and any worker of the work pool runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from rltrack.config import TrainingConfig
from rltrack.errors import RltrackError
from rltrack.flows.installation import OURS, VARIABLE, installation_of
from rltrack.runs import Root
from rltrack.studies.search import Search, trial_name

_POLL_SECONDS = 2.0
_BATCH, _PAGE = 50, 200
_RESTART_SECONDS = 900.0
"""How long an automatic restart is expected after a crash or preemption."""


def spread_trials(search: Search, *, wait: bool, notify: Callable[[str], None]) -> dict[str, str]:
    """Start a run of the deployment ``trial`` for each trial without a result that is not under way.

    Args:
        search: The sweep, open. Workers find it by ``RLTRACK_SWEEP_STORAGE`` in their environment, or under the same root.
        wait: Wait until all have ended.
        notify: Called with each progress message.

    Returns:
        The trials without a result, with the reason.

    Raises:
        RltrackError: If the server has no such deployment.
    """
    runs = {trial_name(search.name, number): {"sweep": search.name, "number": number} for number in search.unfinished()}
    return _spread(installation_of(search.root).deployment("trial"), runs, wait, notify)


def spread_seeds(
    root: Root, members: Mapping[str, TrainingConfig], *, wait: bool, notify: Callable[[str], None]
) -> dict[str, str]:
    """Start a run of the deployment ``train`` for each seed of a study; as `spread_trials`.

    Args:
        root: The root, whose installation names the deployment.
        members: Each run's configuration, by its name.
        wait: Wait until all have ended.
        notify: Called with each progress message.
    """
    runs = {name: {"config": config.to_mapping(), "run": name} for name, config in members.items()}
    return _spread(installation_of(root).deployment("train"), runs, wait, notify)


def _spread(
    deployment: str, runs: Mapping[str, Mapping[str, Any]], wait: bool, notify: Callable[[str], None]
) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            raise RltrackError(
                f"The Prefect server has no deployment {deployment}. Create it with `rltrack deploy` or `rltrack up`. "
                f"If it was deployed from another root under another name, set {VARIABLE} to that name."
            ) from None
        if OURS not in found.tags:
            raise RltrackError(
                f"Deployment {deployment} on the Prefect server is not rltrack's: it lacks the tag {OURS}."
            )
        under_way = {
            name: flow_run
            for name, flow_run in _latest_flow_runs(client, found.id, dict.fromkeys(runs), _liveness).items()
            if not _has_ended(flow_run)
        }
        since = {name: flow_run.created for name, flow_run in under_way.items()}
        for name, parameters in runs.items():
            if name not in under_way:
                flow_run = client.create_flow_run_from_deployment(found.id, name=name, parameters=dict(parameters))
                since[name] = flow_run.created
        started = len(runs) - len(under_way)
        notify(f"{started} started as runs of {deployment}{f'; {len(under_way)} are under way' if under_way else ''}")
        return _follow(client, found.id, since, notify) if wait else {}


def _follow(
    client: SyncPrefectClient, deployment: UUID, since: Mapping[str, datetime | None], notify: Callable[[str], None]
) -> dict[str, str]:
    """Wait until each has ended; flow runs created earlier are ignored."""
    left, shown = dict(since), dict[str, str]()
    problems: dict[str, str] = {}
    while left:
        for name, flow_run in _latest_flow_runs(client, deployment, left, _progress).items():
            if flow_run.state is None:
                continue
            if shown.get(name) != flow_run.state.name:
                shown[name] = str(flow_run.state.name)
                notify(
                    f"{name}: {flow_run.state.name}{f' ({flow_run.state.message})' if flow_run.state.message else ''}"
                )
            if _has_ended(flow_run):
                del left[name]
                if not _is_done(flow_run):
                    problems[name] = f"{flow_run.state.name}: {flow_run.state.message}"
        if left:
            time.sleep(_POLL_SECONDS)
    return problems


def _latest_flow_runs(
    client: SyncPrefectClient, deployment: UUID, since: Mapping[str, datetime | None], rank: Callable[[FlowRun], int]
) -> dict[str, FlowRun]:
    """Return the deployment's flow run of each name with the highest rank, and of these the newest."""
    names, found = list(since), dict[str, FlowRun]()
    for begin in range(0, len(names), _BATCH):
        chosen, offset = names[begin : begin + _BATCH], 0
        while page := client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                name=FlowRunFilterName(any_=chosen), deployment_id=FlowRunFilterDeploymentId(any_=[deployment])
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=_PAGE, offset=offset,
        ):  # fmt: skip
            for flow_run in page:
                moment, before = since[flow_run.name], found.get(flow_run.name)
                is_older = moment is not None and flow_run.created is not None and flow_run.created < moment
                if not is_older and (before is None or rank(flow_run) >= rank(before)):
                    found[flow_run.name] = flow_run
            offset += len(page)
            if len(page) < _PAGE:
                break
    return found


def _liveness(flow_run: FlowRun) -> int:
    """Rank flow runs under way above ended ones."""
    return int(not _has_ended(flow_run))


def _progress(flow_run: FlowRun) -> int:
    """Rank completed flow runs highest: another flow run of the same name may have ended as busy."""
    return 2 if _is_done(flow_run) else _liveness(flow_run)


def _is_done(flow_run: FlowRun) -> bool:
    return flow_run.state is not None and flow_run.state.is_completed()


def _has_ended(flow_run: FlowRun) -> bool:
    """Whether it is final: one that crashed or was preempted is restarted as a new flow run of the same name."""
    state = flow_run.state
    if state is None or not state.is_final():
        return False
    if state.is_crashed() or state.name in ("Preempted", "Busy"):
        return (datetime.now(UTC) - state.timestamp).total_seconds() > _RESTART_SECONDS
    return True
