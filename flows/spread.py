"""Seeds and trials as deployment runs: started once each, carried out by whatever workers the work pool has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from rltrack.config import TrainingConfig
from rltrack.errors import RltrackError
from rltrack.studies.search import Search, trial_name

_LOOK_SECONDS = 2.0
_BATCH = 50
_COMES_BACK_SECONDS = 900.0
"""How long one that crashed or was preempted is expected to come back by itself."""


def spread_trials(search: Search, *, wait: bool, tell: Callable[[str], None]) -> dict[str, str]:
    """Start a run of the deployment ``trial`` for each trial that has no result and is not under way.

    Args:
        search: The sweep, open. The workers find it by ``RLTRACK_SWEEP_STORAGE`` in their environment, or under the same root.
        wait: Wait until all have ended.
        tell: Hears how it goes.

    Returns:
        The trials that have no result, with the reason.

    Raises:
        RltrackError: If the server has no such deployment.
    """
    runs = {trial_name(search.name, number): {"sweep": search.name, "number": number} for number in search.unfinished()}
    return _spread("trial/trial", runs, wait, tell)


def spread_seeds(members: Mapping[str, TrainingConfig], *, wait: bool, tell: Callable[[str], None]) -> dict[str, str]:
    """Start a run of the deployment ``train`` for each seed of a study; as `spread_trials`.

    Args:
        members: Each run's configuration, by its name.
        wait: Wait until all have ended.
        tell: Hears how it goes.
    """
    runs = {name: {"config": config.to_mapping(), "run": name} for name, config in members.items()}
    return _spread("train/train", runs, wait, tell)


def _spread(
    deployment: str, runs: Mapping[str, Mapping[str, Any]], wait: bool, tell: Callable[[str], None]
) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            raise RltrackError(
                f"The Prefect server has no deployment {deployment}. Make it with `rltrack deploy`; `rltrack up` does so by itself."
            ) from None
        known = _newest(client, list(runs))
        begun = 0
        for name, parameters in runs.items():
            flow_run = known.get(name)
            if flow_run is None or (_has_ended(flow_run) and not _is_done(flow_run)):
                client.create_flow_run_from_deployment(found.id, name=name, parameters=dict(parameters))
                begun += 1
        tell(f"{begun} of {len(runs)} started as runs of {deployment}; the others are under way or done")
        return _follow(client, list(runs), tell) if wait else {}


def _follow(client: SyncPrefectClient, names: Sequence[str], tell: Callable[[str], None]) -> dict[str, str]:
    left, said = list(names), dict[str, str]()
    problems: dict[str, str] = {}
    while left:
        newest = _newest(client, left)
        for name in list(left):
            flow_run = newest.get(name)
            if flow_run is None or flow_run.state is None:
                continue
            if said.get(name) != flow_run.state.name:
                said[name] = str(flow_run.state.name)
                tell(f"{name}: {flow_run.state.name}{f' ({flow_run.state.message})' if flow_run.state.message else ''}")
            if _has_ended(flow_run):
                left.remove(name)
                if not _is_done(flow_run):
                    problems[name] = f"{flow_run.state.name}: {flow_run.state.message}"
        if left:
            time.sleep(_LOOK_SECONDS)
    return problems


def _newest(client: SyncPrefectClient, names: Sequence[str]) -> dict[str, FlowRun]:
    """Return the newest flow run of each name."""
    found: dict[str, FlowRun] = {}
    for begin in range(0, len(names), _BATCH):
        chosen, offset = list(names[begin : begin + _BATCH]), 0
        while page := client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=chosen)),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=200, offset=offset,
        ):  # fmt: skip
            found.update({flow_run.name: flow_run for flow_run in page})
            offset += len(page)
            if len(page) < 200:
                break
    return found


def _is_done(flow_run: FlowRun) -> bool:
    return flow_run.state is not None and flow_run.state.is_completed()


def _has_ended(flow_run: FlowRun) -> bool:
    """Whether nothing more comes of it: one that crashed or was preempted comes back as a new flow run of its name."""
    state = flow_run.state
    if state is None or not state.is_final():
        return False
    if state.is_crashed() or state.name in ("Preempted", "Busy"):
        return (datetime.now(UTC) - state.timestamp).total_seconds() > _COMES_BACK_SECONDS
    return True
