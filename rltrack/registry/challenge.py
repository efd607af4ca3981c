"""A challenge: both policies play the same fresh episodes, and the gate decides. Nothing is written here."""

from __future__ import annotations

import time
import uuid
from typing import Any

from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.evaluation.episodes import Evaluation
from rltrack.identity import identity, identity_hash
from rltrack.registry.champions import load_champion
from rltrack.registry.gate import Gate, decide
from rltrack.registry.match import (
    BASELINE_SEEDS,
    PROMOTION_SEEDS,
    check_comparable,
    fresh_seeds,
    play,
    play_stored,
)
from rltrack.registry.model_registry import ModelRegistry, Notify
from rltrack.registry.models import StoredPolicy
from rltrack.registry.registered import Registered, number_of
from rltrack.runs import Root, StoredConfiguration


def compare(
    registry: ModelRegistry,
    model: str,
    challenger: StoredPolicy,
    policy: ExportedPolicy,
    champion: Registered | None,
    gate: Gate,
    notify: Notify,
) -> dict[str, Any]:
    """Let challenger and champion play the same episodes, and apply the gate.

    Args:
        registry: Holds the champion.
        model: The registered model.
        challenger: The challenger.
        policy: Its policy, as it would be stored.
        champion: The champion; None if there is none yet.
        gate: What must be shown.
        notify: Called with each progress message.

    Returns:
        The whole decision as plain data: both lists of returns, intervals, seeds, hashes.

    Raises:
        ConfigurationError: If the two cannot be compared, or a return is not finite.
        ModelBroken: If the champion's files are missing or changed.
    """
    settings = challenger.run.configuration()
    config = settings.values
    rival = None
    if champion is not None:
        rival = load_champion(registry, model, champion)
        check_comparable(policy, config, rival, f"version {champion.version} of '{model}'")
    configs = [config, *([rival.config] if rival else [])]
    stream = [model, challenger.key, str(number_of(champion))]
    seeds = fresh_seeds(PROMOTION_SEEDS, stream, gate.episodes, configs)
    notify(f"{challenger.label} plays {gate.episodes} episodes")
    ours = play(policy, config, seeds)
    theirs = None
    if rival is not None and champion is not None:
        notify(f"the champion, version {champion.version} ({rival.source}), plays the same")
        theirs = play_stored(rival, Root(challenger.run.root), seeds, [config])
    result = decide(ours.returns, None if theirs is None else theirs.returns, gate)
    record = {
        "id": uuid.uuid4().hex,
        "time": time.time(),
        "model": model,
        "promoted": result.promoted,
        "reason": result.reason,
        "against": number_of(champion),
        "gate": gate.to_record(),
        "seeds": seeds,
        "challenger": {**_described(challenger.label, settings), **_played(ours), "interval": list(result.interval)},
        "champion": None
        if theirs is None or rival is None
        else {**_described(rival.source, StoredConfiguration.of(rival.config, rival.source)), **_played(theirs)},
        "difference": result.difference,
        "difference_interval": None if result.difference_interval is None else list(result.difference_interval),
        "baseline": None,
    }
    if result.promoted:
        # the returns that a policy was selected by are biased upwards; later evaluations need an unbiased baseline
        again = fresh_seeds(BASELINE_SEEDS, stream, gate.episodes, configs)
        record["baseline"] = list(play(policy, config, again).returns)
    return record


def misses_floor(model: str, champion: Registered, challenger: StoredPolicy, policy: ExportedPolicy, gate: Gate) -> str:
    """Let a policy that is the champion already play, and say how it misses the gate's floor; empty if it reaches it.

    Raises:
        ConfigurationError: If a return is not finite.
    """
    config = challenger.run.configuration().values
    seeds = fresh_seeds(PROMOTION_SEEDS, [model, challenger.key, str(champion.version)], gate.episodes, [config])
    result = decide(play(policy, config, seeds).returns, None, gate)
    return "" if result.promoted else f"it stays champion, but {result.reason.removeprefix('the first champion ')}"


def _described(source: str, stored: StoredConfiguration) -> dict[str, Any]:
    settings = stored.to_training()
    return {"source": source, "configuration": identity_hash(identity(settings)), "seed": settings.seed}


def _played(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "returns": list(evaluation.returns),
        "lengths": list(evaluation.lengths),
        "mean": evaluation.mean,
        "iqm": evaluation.iqm,
        "interval": list(evaluation.interval),
    }
