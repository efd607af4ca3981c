"""Deployments, the work pool and the automations that bring interrupted trainings back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.flow_runs import resume_flow_run, suspend_flow_run

from rltrack.errors import RltrackError

POOL = "rltrack"
HEARTBEATS_MISSED = 3
DEBOUNCE_SECONDS = 30
"""A worker reports the same crash twice, seconds apart."""

BRING_BACK, MARK_SILENT = "rltrack: bring interrupted runs back", "rltrack: mark silent runs as crashed"
RETRAIN_DEGRADED = "rltrack: retrain degraded champions"
COMES_BACK = ("train", "retrain", "promote", "trial")
"""Flows whose interrupted runs go on in a new flow run. An evaluation of a champion comes again with its schedule."""


def prefect_file() -> Path:
    """Return the file with the deployments."""
    return Path(__file__).with_name("prefect.yaml")


def apply(
    file: Path | None = None, *, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> list[str]:
    """Make or update work pool, deployments and automations on the server that PREFECT_API_URL names.

    Args:
        file: Prefect's file of deployments; omitted: rltrack's own. Deployments with the tag ``rltrack`` come back by themselves.
        log: Where Prefect's own words go; omitted: to the terminal.
        environment: Of this command, and of the deployments' runs.

    Returns:
        The names of the deployments.

    Raises:
        RltrackError: If Prefect refuses them.
    """
    found = (file or prefect_file()).absolute()
    _make_pool()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(found)]
    with open(log, "ab") if log is not None else contextlib.nullcontext() as output:
        done = subprocess.run(
            command, env=dict(environment or os.environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            cwd=found.parent,
        )  # fmt: skip
    if done.returncode != 0:
        raise RltrackError(f"Prefect refused the deployments of {found}{f'; see {log}' if log else ''}.")
    with get_client(sync_client=True) as client:
        ours = [deployment for deployment in client.read_deployments() if "rltrack" in deployment.tags]
        flows = {flow.id: flow.name for flow in client.read_flows()}
        for name in COMES_BACK:
            _put(client, _bring_back(name, [item for item in ours if flows.get(item.flow_id) == name]))
        _put(client, _mark_silent())
        for deployment in ours:
            if flows.get(deployment.flow_id) == "retrain" and deployment.name == "retrain":
                _put(client, _retrain_degraded(deployment.id))
    return [f"{flows.get(deployment.flow_id, '?')}/{deployment.name}" for deployment in ours]


def _make_pool() -> None:
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", description="rltrack's trainings"))


def _bring_back(flow: str, deployments: Sequence[DeploymentResponse]) -> AutomationCore:
    """A new run of the same deployment, which resumes: after a preemption, a crash, or a silence that counts as one."""
    names = {
        name: known.get("default")
        for deployment in deployments
        for name, known in ((deployment.parameter_openapi_schema or {}).get("properties") or {}).items()
    }
    parameters = {
        name: _templated(f"flow_run.parameters.{name} | default({_literal(value)})") for name, value in names.items()
    }
    if "config" in names:  # a training's flow run is named as its run
        parameters["run"] = _templated("flow_run.name")
    parameters["restarts"] = _templated("(flow_run.parameters.restarts or 0) + 1")
    return AutomationCore(
        name=f"{BRING_BACK} ({flow})",
        description="Starts a new flow run that goes on from the newest version. The server refuses more than a hundred in a row.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Preempted", "prefect.flow-run.Crashed"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.id": [f"prefect.deployment.{deployment.id}" for deployment in deployments],
                "prefect.resource.role": "deployment",
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(seconds=DEBOUNCE_SECONDS),
        ),
        actions=[
            RunDeployment(
                source="inferred",
                parameters=parameters,
            )
        ],
    )


def _templated(expression: str) -> dict[str, Any]:
    return {
        "__prefect_kind": "json",
        "value": {"__prefect_kind": "jinja", "template": f"{{{{ ({expression}) | tojson }}}}"},
    }


def _literal(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def _retrain_degraded(retrain: UUID) -> AutomationCore:
    """A champion that got worse since its promotion is retrained from its own configuration; `cool_down_hours` limits how often."""
    return AutomationCore(
        name=RETRAIN_DEGRADED,
        description="Starts retrain/retrain for the model; the new run becomes champion only if it is better.",
        trigger=EventTrigger(
            expect={"rltrack.champion.degraded"},
            match={"prefect.resource.id": "rltrack.model.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(seconds=DEBOUNCE_SECONDS),
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=retrain,
                parameters={"config": None, "model": _templated("event.payload.model")},
            )
        ],
    )


def _mark_silent() -> AutomationCore:
    """A run whose process or machine vanished says nothing; without heartbeats it counts as crashed."""
    frequency = _heartbeat_seconds()
    return AutomationCore(
        name=MARK_SILENT,
        description=f"No heartbeat for {HEARTBEATS_MISSED * frequency} s.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=HEARTBEATS_MISSED * frequency),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="No heartbeat: its process is gone.")
        ],
    )


def _heartbeat_seconds() -> int:
    from prefect.settings import get_current_settings

    return get_current_settings().flows.heartbeat_frequency or 180


def _put(client: Any, automation: AutomationCore) -> None:
    """Make an automation, or replace the one of its name."""
    for known in client.read_automations_by_name(automation.name):
        client.delete_automation(known.id)
    client.create_automation(automation)


def pause_work_pool(paused: bool) -> None:
    """Pause the work pool, so that no worker begins a run, or open it again."""
    with get_client(sync_client=True) as client:
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=paused))


def running_flow_runs() -> list[FlowRun]:
    """Return the work pool's flow runs that run now."""
    return _flow_runs([StateType.RUNNING])


def _flow_runs(states: list[StateType], names: list[str] | None = None) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
                name=FlowRunFilterName(any_=names) if names else None,
            ),
        )


def suspend(flow_run_id: UUID) -> None:
    """Ask a flow run to suspend at its next boundary; one that cannot is left to its own end."""
    with contextlib.suppress(RuntimeError):
        suspend_flow_run(flow_run_id=flow_run_id)


def let_suspended_go_on(names: list[str]) -> None:
    """Let flow runs go on that were suspended, under the same ids."""
    for flow_run in _flow_runs([StateType.PAUSED], names) if names else []:
        with contextlib.suppress(RuntimeError):
            resume_flow_run(flow_run.id)
