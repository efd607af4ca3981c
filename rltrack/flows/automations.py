"""The automations of an installation: restart interrupted runs, mark runs without heartbeat as crashed, retrain champions.

Each reacts only to flow runs of the installation's own deployments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
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
"""A worker reports the same crash twice, a few seconds apart."""

BRING_BACK, MARK_SILENT = "rltrack: bring interrupted runs back", "rltrack: mark silent runs as crashed"
RETRAIN_DEGRADED = "rltrack: retrain degraded champions"
_MADE = "rltrack.made="
RESTARTED_FLOWS = ("train", "retrain", "promote", "trial")
"""Flows whose interrupted runs are resumed in a new flow run. A champion's evaluation is repeated by its schedule."""


def automations_of(
    installation: Installation, deployments: Mapping[str, Sequence[DeploymentResponse]]
) -> list[AutomationCore]:
    """Return the automations that an installation has.

    Args:
        installation: The installation.
        deployments: Its deployments with the tag ``rltrack``, by the name of their flow.
    """
    everything = [item for items in deployments.values() for item in items]
    wanted = [_restart_interrupted(name, deployments[name]) for name in RESTARTED_FLOWS if deployments.get(name)]
    if everything:
        wanted.append(_mark_silent(everything))
    own = next((item for item in deployments.get("retrain", ()) if item.name == installation.named("retrain")), None)
    evaluations = deployments.get("evaluate-champion", ())
    if own is not None and evaluations:
        wanted.append(_retrain_degraded(own.id, evaluations))
    return marked(installation, wanted)


def marked(installation: Installation, wanted: Sequence[AutomationCore]) -> list[AutomationCore]:
    """Return automations with the installation's name and mark, and a digest of what they are."""
    suffix = "" if installation.name == DEFAULT_NAME else f" [{installation.name}]"
    named = [item.model_copy(update={"name": f"{item.name}{suffix}", "tags": [installation.mark]}) for item in wanted]
    return [item.model_copy(update={"tags": [*item.tags, f"{_MADE}{fingerprint(item)}"]}) for item in named]


def fingerprint(automation: AutomationCore) -> str:
    """Return a digest of an automation's trigger and actions; not of whether it is enabled."""
    data = automation.model_dump(mode="json", include={"trigger", "actions"})
    return hashlib.sha256(json.dumps(_canonical(data), sort_keys=True).encode()).hexdigest()[:16]


def was_edited(automation: Automation) -> bool:
    """Whether it was changed on the server since it was created."""
    made = [tag.removeprefix(_MADE) for tag in automation.tags if tag.startswith(_MADE)]
    return bool(made) and made[0] != fingerprint(automation)


def _canonical(value: Any) -> Any:
    """Return data independent of the order of sets, and without ids and defaults that the server adds."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items() if key != "id" and item is not None}
    if isinstance(value, list):
        return sorted((_canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def _trigger(
    resource: str,
    deployments: Sequence[DeploymentResponse],
    expect: set[str],
    *,
    after: Collection[str] = (),
    posture: Posture = Posture.Reactive,
    seconds: int = DEBOUNCE_SECONDS,
) -> EventTrigger:
    """Return what waits for events about flow runs of these deployments, for each resource by itself."""
    related: dict[str, Any] = {
        "prefect.resource.id": sorted(f"prefect.deployment.{deployment.id}" for deployment in deployments),
        "prefect.resource.role": "deployment",
    }
    return EventTrigger(
        after=set(after), expect=expect, match={"prefect.resource.id": resource}, match_related=related,
        for_each={"prefect.resource.id"}, posture=posture, threshold=1, within=timedelta(seconds=seconds),
    )  # fmt: skip


def _restart_interrupted(flow: str, deployments: Sequence[DeploymentResponse]) -> AutomationCore:
    """Start a new flow run of the same deployment, which resumes, after a preemption or a crash."""
    names = {
        name: known.get("default")
        for deployment in deployments
        for name, known in ((deployment.parameter_openapi_schema or {}).get("properties") or {}).items()
    }
    parameters = {
        name: _templated(f"flow_run.parameters.{name} | default({_literal(value)})") for name, value in names.items()
    }
    if "config" in names:  # a training's flow run has the name of its run
        parameters["run"] = _templated("flow_run.name")
    parameters["restarts"] = _templated("(flow_run.parameters.restarts or 0) + 1")
    return AutomationCore(
        name=f"{BRING_BACK} ({flow})",
        description="Starts a new flow run that resumes from the newest version. The server refuses more than a hundred in a row.",
        trigger=_trigger("prefect.flow-run.*", deployments, {"prefect.flow-run.Preempted", "prefect.flow-run.Crashed"}),
        actions=[RunDeployment(source="inferred", parameters=parameters)],
    )


def _mark_silent(deployments: Sequence[DeploymentResponse]) -> AutomationCore:
    """Mark a run without heartbeat as crashed: its process or machine is gone."""
    frequency = get_current_settings().flows.heartbeat_frequency or 180
    return AutomationCore(
        name=MARK_SILENT,
        description=f"No heartbeat for {HEARTBEATS_MISSED * frequency} s.",
        trigger=_trigger(
            "prefect.flow-run.*",
            deployments,
            {"prefect.flow-run.*"},
            after={"prefect.flow-run.heartbeat"},
            posture=Posture.Proactive,
            seconds=HEARTBEATS_MISSED * frequency,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="No heartbeat: its process is gone.")
        ],
    )


def _retrain_degraded(retrain: UUID, evaluations: Sequence[DeploymentResponse]) -> AutomationCore:
    """Retrain a champion that got worse since its promotion, from its own configuration; `cool_down_hours` limits how often."""
    return AutomationCore(
        name=RETRAIN_DEGRADED,
        description="Starts the deployment `retrain` for the model; the new run becomes champion only if it is better.",
        trigger=_trigger("rltrack.model.*", evaluations, {"rltrack.champion.degraded"}),
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
    """Create or update automations; one that was changed on the server is kept, and a disabled one stays disabled."""
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
    """Return the automations that an installation has created."""
    return [item for item in every(client.read_automations) if installation.owns(item.tags)]


def _unmarked(client: SyncPrefectClient) -> list[Automation]:
    """Return the automations of an rltrack without installations, recognised by name and missing tags."""
    names = {MARK_SILENT, RETRAIN_DEGRADED, *(f"{BRING_BACK} ({flow})" for flow in RESTARTED_FLOWS)}
    return [item for item in every(client.read_automations) if item.name in names and not item.tags]
