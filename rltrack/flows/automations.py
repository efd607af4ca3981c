"""The automations of an installation: interrupted runs come back, silent ones count as crashed, degraded champions are retrained.

Each hears the flow runs of the installation's own deployments and no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.settings import get_current_settings

from rltrack.flows.deployed import Deployed, every
from rltrack.flows.installation import DEFAULT_NAME, Installation, Step

HEARTBEATS_MISSED = 3
DEBOUNCE_SECONDS = 30
"""A worker reports the same crash twice, seconds apart."""

BRING_BACK, MARK_SILENT = "rltrack: bring interrupted runs back", "rltrack: mark silent runs as crashed"
RETRAIN_DEGRADED = "rltrack: retrain degraded champions"
_MADE = "rltrack.made="
COMES_BACK = ("train", "retrain", "promote", "trial")
"""Flows whose interrupted runs go on in a new flow run. An evaluation of a champion comes again with its schedule."""


def automations_of(
    installation: Installation, deployments: Mapping[str, Sequence[DeploymentResponse]]
) -> list[AutomationCore]:
    """Return the automations that an installation has.

    Args:
        installation: The installation.
        deployments: Its deployments with the tag ``rltrack``, by the name of their flow.
    """
    everything = [item for items in deployments.values() for item in items]
    wanted = [_bring_back(name, deployments[name]) for name in COMES_BACK if deployments.get(name)]
    if everything:
        wanted.append(_mark_silent(everything))
    own = next((item for item in deployments.get("retrain", ()) if item.name == installation.named("retrain")), None)
    watching = deployments.get("evaluate-champion", ())
    if own is not None and watching:
        wanted.append(_retrain_degraded(own.id, watching))
    suffix = "" if installation.name == DEFAULT_NAME else f" [{installation.name}]"
    marked = [item.model_copy(update={"name": f"{item.name}{suffix}", "tags": [installation.mark]}) for item in wanted]
    return [item.model_copy(update={"tags": [*item.tags, f"{_MADE}{fingerprint(item)}"]}) for item in marked]


def fingerprint(automation: AutomationCore) -> str:
    """Return a digest of what an automation hears and does; not of whether it is switched on."""
    data = automation.model_dump(mode="json", include={"trigger", "actions"})
    return hashlib.sha256(json.dumps(_canonical(data), sort_keys=True).encode()).hexdigest()[:16]


def was_edited(automation: Automation) -> bool:
    """Whether a person changed it on the server: it is no longer what was made."""
    made = [tag.removeprefix(_MADE) for tag in automation.tags if tag.startswith(_MADE)]
    return bool(made) and made[0] != fingerprint(automation)


def _has_own_name(name: str) -> bool:
    """Whether it is called as one of rltrack's, without the name of an installation."""
    return name in {MARK_SILENT, RETRAIN_DEGRADED, *(f"{BRING_BACK} ({flow})" for flow in COMES_BACK)}


def _canonical(value: Any) -> Any:
    """Sets come back in another order, and some ids and defaults are the server's."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items() if key != "id" and item is not None}
    if isinstance(value, list):
        return sorted((_canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def _of(deployments: Sequence[DeploymentResponse]) -> dict[str, Any]:
    """What an event is related to if it is about a flow run of these deployments."""
    return {
        "prefect.resource.id": sorted(f"prefect.deployment.{deployment.id}" for deployment in deployments),
        "prefect.resource.role": "deployment",
    }


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
            match_related=_of(deployments),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(seconds=DEBOUNCE_SECONDS),
        ),
        actions=[RunDeployment(source="inferred", parameters=parameters)],
    )


def _mark_silent(deployments: Sequence[DeploymentResponse]) -> AutomationCore:
    """A run whose process or machine vanished sends no heartbeat; it counts as crashed."""
    frequency = get_current_settings().flows.heartbeat_frequency or 180
    return AutomationCore(
        name=MARK_SILENT,
        description=f"No heartbeat for {HEARTBEATS_MISSED * frequency} s.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_of(deployments),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=HEARTBEATS_MISSED * frequency),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="No heartbeat: its process is gone.")
        ],
    )


def _retrain_degraded(retrain: UUID, watching: Sequence[DeploymentResponse]) -> AutomationCore:
    """A champion that got worse since its promotion is retrained from its own configuration; `cool_down_hours` limits how often."""
    return AutomationCore(
        name=RETRAIN_DEGRADED,
        description="Starts the deployment `retrain` for the model; the new run becomes champion only if it is better.",
        trigger=EventTrigger(
            expect={"rltrack.champion.degraded"},
            match={"prefect.resource.id": "rltrack.model.*"},
            match_related=_of(watching),
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


def _templated(expression: str) -> dict[str, Any]:
    return {
        "__prefect_kind": "json",
        "value": {"__prefect_kind": "jinja", "template": f"{{{{ ({expression}) | tojson }}}}"},
    }


def _literal(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def put(
    client: SyncPrefectClient,
    made: Deployed,
    installation: Installation,
    wanted: Sequence[AutomationCore],
    *,
    overwrite: bool,
    adopt: bool,
    dry_run: bool,
) -> list[Step]:
    """Make or update automations; one that a person changed is kept, and one that was switched off stays off."""
    known = {item.name: item for item in own(client, installation)}
    if adopt:
        known = {item.name: item for item in _unmarked(client)} | known
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
        elif fingerprint(there) == fingerprint(item):
            steps.append(Step("keep", "automation", item.name))
        elif was_edited(there) and not overwrite:
            steps.append(Step("keep", "automation", item.name, ("it was changed on the server",)))
        else:
            steps.append(Step("update", "automation", item.name))
            if not dry_run:
                client.delete_automation(there.id)
                client.create_automation(item.model_copy(update={"enabled": there.enabled}))
    return steps


def own(client: SyncPrefectClient, installation: Installation) -> list[Automation]:
    """Return the automations that an installation has made."""
    return [item for item in every(client.read_automations) if installation.owns(item.tags)]


def _unmarked(client: SyncPrefectClient) -> list[Automation]:
    """Those that an rltrack without installations made: by their names, and with no tags."""
    return [item for item in every(client.read_automations) if _has_own_name(item.name) and not item.tags]
