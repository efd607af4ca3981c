"""Suspends flow runs of an installation's work pool at a boundary, and resumes them later under the same ids."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.flow_runs import resume_flow_run, suspend_flow_run

from rltrack.flows.installation import Installation


def running_flow_runs(installation: Installation) -> list[FlowRun]:
    """Return the work pool's running flow runs."""
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
    """Ask a flow run to suspend at its next boundary; one that cannot runs to its end."""
    with contextlib.suppress(RuntimeError):
        suspend_flow_run(flow_run_id=flow_run_id)


def resume_suspended(installation: Installation, ids: Sequence[str] | None) -> None:
    """Resume suspended flow runs under the same ids; None: all that are suspended."""
    known = None if ids is None else [UUID(flow_run) for flow_run in ids]
    for flow_run in _flow_runs(installation, [StateType.PAUSED], known) if known != [] else []:
        with contextlib.suppress(RuntimeError):
            resume_flow_run(flow_run.id)
