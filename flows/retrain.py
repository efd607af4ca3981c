"""Scheduled retraining: a new run each time, which begins with the policy of the run before, or from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger, runtime

from flows.train import Restarts, default_name, run_training
from rltrack.config import TrainingConfig
from rltrack.errors import CheckpointNotFound
from rltrack.runs import Root, run_stem


def _flow_run_name() -> str:
    """Name the flow run as its run."""
    parameters = runtime.flow_run.parameters
    return retrained_name(parameters["config"], parameters.get("run"), runtime.flow_run.scheduled_start_time)


def retrained_name(config: TrainingConfig | Mapping[str, Any], run: str | None, scheduled: datetime | None) -> str:
    """Return the name of a new run: the configuration's, with the time for which it was scheduled."""
    if run:
        return run
    moment = (scheduled or datetime.now(UTC)).astimezone(UTC)
    return f"{_stem(config)}-{moment:%Y%m%d-%H%M%S}"


@flow(name="retrain", flow_run_name=_flow_run_name, persist_result=False)
def retrain(config: TrainingConfig, warm_start: bool = True, run: str | None = None, restarts: Restarts = 0) -> Any:
    """Train a new run.

    Args:
        config: The training; its name is what the run's name begins with.
        warm_start: Begin with the newest version of the last finished run of this name; False, or without one: from scratch.
        run: The run's name, to go on with it.
        restarts: How often it was brought back by itself so far.

    Returns:
        As `flows.train.train`.
    """
    name = retrained_name(config, run or runtime.flow_run.name, None)
    root, log = Root(), get_run_logger()
    origin = config.start_from
    if root.exists(name):  # it goes on: what it began with is part of its identity
        origin = root.find(name).read_config().get("start_from")
    elif warm_start and origin is None:
        origin = last_finished(root, _stem(config))
    log.info(f"begins with {origin}" if origin else "begins from scratch")
    return run_training(config.model_copy(update={"start_from": origin}), name)


def last_finished(root: Root, stem: str) -> str | None:
    """Return ``RUN@version`` of the newest finished run whose name begins so, or None."""
    finished = []
    for found in root.runs():
        status = found.status()
        if found.name.startswith(f"{stem}-") and status.is_finished and status.state == "completed":
            finished.append((status.last_time, found))
    for _, found in sorted(finished, key=lambda item: item[0], reverse=True):
        try:
            return f"{found.name}@{found.store().find('last').name}"
        except CheckpointNotFound:
            continue
    return None


def _stem(config: TrainingConfig | Mapping[str, Any]) -> str:
    if isinstance(config, Mapping):
        config = TrainingConfig.model_validate(config)
    return config.name or run_stem(default_name(config))
