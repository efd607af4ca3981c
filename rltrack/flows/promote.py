"""Promotion as a flow: a run challenges a model's champion, and becomes champion only if it passes the gate."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.events import emit_event
from prefect.states import Completed

from rltrack.flows.page import Page
from rltrack.flows.redaction import redacting
from rltrack.flows.retries import RETRIED
from rltrack.flows.train import Restarts
from rltrack.flows.training import check_parameters
from rltrack.registry.champions import champion_origin
from rltrack.registry.gate import Gate
from rltrack.registry.promotion import Decision
from rltrack.registry.promotion import promote as decide
from rltrack.runs import Root
from rltrack.tracking.shipper import prepare_process
from rltrack.training.trainer import config_of

PROMOTED, REFUSED, DEGRADED = "rltrack.champion.promoted", "rltrack.champion.refused", "rltrack.champion.degraded"
"""Events; their resource is ``rltrack.model.NAME``."""


@task(name="gate", task_run_name="{run}@{version} challenges {model}", **RETRIED)
@redacting
def challenge(run: str, model: str, version: str, gate: Gate) -> Decision:
    """Let a run's version challenge the champion; an earlier decision is not repeated."""
    prepare_process()
    found = Root().find(run)
    if runtime.deployment.id is not None:
        check_parameters(config_of(found))
        check_champion(model)
    return decide(found, model, version=version, gate=gate, notify=get_run_logger().info)


def check_champion(model: str) -> None:
    """Refuse a champion whose configuration names what this worker does not allow: registries are shared.

    Raises:
        NotAllowed: As `rltrack.flows.training.check_parameters`.
    """
    _, config = champion_origin(Root(), model)
    if config is not None:
        check_parameters(config)


def promotion(run: str, model: str, version: str, gate: Gate | None) -> Any:
    """Challenge the champion inside a flow run; return the flow run's state, with the decision and its reason."""
    decision = challenge(run, model, version, gate or Gate())
    announce(PROMOTED if decision.promoted else REFUSED, model, {
        "version": decision.version, "run": decision.source, "reason": decision.reason, "against": decision.against or 0,
    })  # fmt: skip
    page = Page(runtime.flow_run.id, f"{run}-{model}")
    try:
        page.show_decision(decision)
    finally:
        page.close()
    word = "is champion" if decision.promoted else "was not promoted"
    message = f"{decision.source}, version {decision.version} of '{model}', {word}: {decision.reason}"
    get_run_logger().info(message)
    return Completed(name="Promoted" if decision.promoted else "NotPromoted", message=message)


def announce(event: str, model: str, payload: dict[str, Any]) -> None:
    """Emit an event about a model, to which automations can react."""
    emit_event(
        event,
        resource={"prefect.resource.id": f"rltrack.model.{model}", "prefect.resource.name": model},
        payload={"model": model, **payload},
    )


@flow(name="promote", flow_run_name="promote {run} to {model}", persist_result=False)
@redacting
def promote(run: str, model: str, version: str = "best", gate: Gate | None = None, restarts: Restarts = 0) -> Any:
    """Make a run's policy the champion of a model, if it is better than the champion.

    Args:
        run: The run.
        model: The registered model; created by the first promotion.
        version: best, last, v12, or env steps.
        gate: What must be shown; omitted: better on 100 paired episodes.
        restarts: Number of automatic restarts so far.

    Returns:
        Completed, named "Promoted" or "NotPromoted", with the reason.
    """
    return promotion(run, model, version, gate)
