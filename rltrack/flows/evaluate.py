"""Evaluation of a champion on a schedule, with an event if it got worse since its promotion."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime, task
from prefect.states import Completed
from pydantic import Field

from rltrack.flows.promote import DEGRADED, announce, check_champion
from rltrack.flows.redaction import redacting
from rltrack.flows.retries import RETRIED
from rltrack.registry.champions import COOL_DOWN_HOURS, FALSE_ALARM_RATE, ChampionEvaluation
from rltrack.registry.champions import evaluate_champion as evaluate
from rltrack.runs import Root
from rltrack.tracking.shipper import prepare_process


@task(name="play", task_run_name="the champion of {model} plays {episodes} episodes", **RETRIED)
@redacting
def play(model: str, episodes: int, moment: str, false_alarm_rate: float, cool_down_hours: float) -> ChampionEvaluation:
    """Play the champion on seeds derived from a moment, so that a retry plays the same episodes."""
    prepare_process()
    if runtime.deployment.id is not None:
        check_champion(model)
    return evaluate(
        Root(),
        model,
        episodes=episodes,
        moment=moment,
        false_alarm_rate=false_alarm_rate,
        cool_down_hours=cool_down_hours,
        notify=get_run_logger().info,
    )


@flow(name="evaluate-champion", flow_run_name="evaluate the champion of {model}", persist_result=False)
@redacting
def evaluate_champion(
    model: str,
    episodes: Annotated[int, Field(ge=1)] = 100,
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = FALSE_ALARM_RATE,
    cool_down_hours: Annotated[float, Field(ge=0)] = COOL_DOWN_HOURS,
) -> Any:
    """Play a model's champion on fresh seeds; emit ``rltrack.champion.degraded`` if it got worse since its promotion.

    Args:
        model: The registered model.
        episodes: How many to play.
        false_alarm_rate: Probability, for each evaluation, of an event about an unchanged champion.
        cool_down_hours: No second event about the same champion within this time.

    Returns:
        Completed, named "AsItWas" or "Degraded", with the numbers.
    """
    moment = (runtime.flow_run.scheduled_start_time or datetime.now(UTC)).isoformat()
    found = play(model, episodes, moment, false_alarm_rate, cool_down_hours)
    message = f"the champion of '{model}', version {found.version}: {found.reason}"
    log = get_run_logger()
    if found.alarm:
        announce(DEGRADED, model, {"version": found.version, "reason": found.reason})
        log.warning(message)
    elif found.degraded:
        log.warning(f"{message}; an event was emitted within the last {cool_down_hours:g} hours")
    else:
        log.info(message)
    return Completed(name="Degraded" if found.degraded else "AsItWas", message=message)
