"""Scheduled retraining: a new run each time; with a model, it challenges the champion, and replaces it only if it is better.

After an interruption at any point, also between training and promotion, the flow continues from there: the run is finished or
not, the decision is made or not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger, runtime

from rltrack.config import TrainingConfig, check_run_name
from rltrack.errors import CheckpointNotFound, ConfigurationError
from rltrack.flows.promote import promotion
from rltrack.flows.redaction import redacting
from rltrack.flows.train import Restarts, check_if_deployed, default_name, run_training
from rltrack.registry.champions import champion_origin
from rltrack.registry.gate import Gate
from rltrack.runs import Root, run_stem
from rltrack.training.trainer import config_of

_LONGEST_STEM = 84
"""Maximum length of a name to which the time is added."""


def _flow_run_name() -> str:
    """Return the run's name as the flow run's; if the parameters give none, the flow itself raises the error."""
    parameters = runtime.flow_run.parameters
    given, run, model = (parameters.get(name) for name in ("config", "run", "model"))
    try:
        return retrained_name(given, run, runtime.flow_run.scheduled_start_time, model)
    except Exception:
        return f"retrain-{str(runtime.flow_run.id)[:8]}"


def retrained_name(
    config: TrainingConfig | Mapping[str, Any] | None,
    run: str | None,
    scheduled: datetime | None,
    model: str | None = None,
) -> str:
    """Return the name of a new run: the configuration's (or the model's), with the time for which it was scheduled.

    Raises:
        ConfigurationError: If that cannot be a run's name.
    """
    moment = (scheduled or datetime.now(UTC)).astimezone(UTC)
    return check_run_name(run or f"{_stem(config, model)}-{moment:%Y%m%d-%H%M%S}")


@flow(name="retrain", flow_run_name=_flow_run_name, persist_result=False)
@redacting
def retrain(
    config: TrainingConfig | None = None,
    warm_start: bool = True,
    run: str | None = None,
    restarts: Restarts = 0,
    model: str | None = None,
    gate: Gate | None = None,
) -> Any:
    """Train a new run; with a model, let it challenge the champion.

    Args:
        config: The training; the run's name begins with its name. Omitted: the champion's, with a new seed.
        warm_start: Start from the champion's policy (without a model: from the newest version of its last finished
            retraining, whose name ends in date and time); if False, or without such a policy, from scratch.
        run: The run's name, to resume it.
        restarts: Number of automatic restarts so far.
        model: The registered model whose champion is challenged; omitted: the run is only trained.
        gate: What must be shown; omitted: better on 100 paired episodes.

    Returns:
        As `rltrack.flows.train.train`; with a model, as `rltrack.flows.promote.promote`.
    """
    if config is not None:
        check_if_deployed(config)
    _stem(config, model)  # raises before anything starts
    name = retrained_name(config, run or runtime.flow_run.name, None, model)
    training = _training(Root(), name, config, warm_start, model)
    check_if_deployed(training)  # a champion's configuration comes from a registry to which others may write
    get_run_logger().info(f"starts from {training.start_from}" if training.start_from else "starts from scratch")
    ended = run_training(training, name)
    if model is None or ended.name != "Completed":
        return ended
    return promotion(name, model, "best", gate)


def _training(
    root: Root, name: str, config: TrainingConfig | None, warm_start: bool, model: str | None
) -> TrainingConfig:
    """Return the run's own configuration if it is resumed; else the given one, or the champion's with a new seed."""
    if root.exists(name):  # its `start_from` is part of its identity
        return config_of(root.find(name))
    origin, champion = (None, None) if model is None else champion_origin(root, model)
    if config is None:
        if champion is None:
            raise ConfigurationError(
                "Nothing to retrain: "
                + (
                    f"model '{model}' has no champion yet, "
                    if model
                    else "neither a configuration nor a model is given, "
                )
                + "so give a configuration for the first run."
            )
        config = champion.model_copy(update={"seed": new_seed(name), "name": None, "start_from": None})
    start_from = config.start_from
    if warm_start and start_from is None:
        start_from = origin if model is not None else last_finished(root, _stem(config, None))
    return config.model_copy(update={"start_from": start_from})


def new_seed(name: str) -> int:
    """Return a run's seed, derived from its name, so that a resume has the same."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1


def last_finished(root: Root, stem: str) -> str | None:
    """Return ``RUN@version`` of the newest finished run with a name of `retrained_name`, or None."""
    finished = []
    for found in root.runs():
        if not re.fullmatch(rf"{re.escape(stem)}-\d{{8}}-\d{{6}}", found.name):
            continue
        status = found.status()
        if status.is_finished and status.state == "completed":
            finished.append((status.last_time, found))
    for _, found in sorted(finished, key=lambda item: item[0], reverse=True):
        try:
            return f"{found.name}@{found.store().find('last').name}"
        except CheckpointNotFound:
            continue
    return None


def _stem(config: TrainingConfig | Mapping[str, Any] | None, model: str | None) -> str:
    if config is None:
        return run_stem(model or "retrain", _LONGEST_STEM)
    if isinstance(config, Mapping):
        config = TrainingConfig.from_mapping(config)
    if config.name is not None and len(config.name) > _LONGEST_STEM:
        raise ConfigurationError(
            f"The name '{config.name}' has {len(config.name)} characters, and retraining adds the time to it; up to "
            f"{_LONGEST_STEM} are allowed. Shorten name."
        )
    return config.name or run_stem(default_name(config), _LONGEST_STEM)
