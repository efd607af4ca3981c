"""Promotion: only a better policy becomes champion::

    take the model's lock
    repeat while another machine changes the champion:
        refuse a challenger whose stored policy acts differently from the trained agent
        load the champion; refuse a challenger of another environment or other spaces
        both play the same episodes, on seeds that no evaluation during training used
        ask the gate
    store the challenger's policy and the decision, with both lists of returns
    make it a version of the model, with the decision                          (in one step)
    if it was promoted: move the alias `champion`                              (the commit point)
    append to the history

Nothing is written before the gate has decided. A promotion that was killed is repeated: its decision is kept, and only the
missing steps are done.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rltrack.errors import (
    RegistryUnavailable,
    RltrackError,
)
from rltrack.registry.challenge import compare, misses_floor
from rltrack.registry.digest import DIGEST_TAG
from rltrack.registry.gate import Gate
from rltrack.registry.match import (
    as_stored,
)
from rltrack.registry.model_registry import LOCK_SECONDS, ModelRegistry, Notify
from rltrack.registry.models import (
    CANDIDATE,
    POLICY_TAG,
    StoredPolicy,
    policy_of,
    store_policy,
)
from rltrack.registry.registered import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    Event,
    Registered,
    VersionDecision,
    check_model_name,
    number_of,
)
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.destination import Destination, read_destination, without_password
from rltrack.tracking.shipper import EXIT_BUSY, ship_run
from rltrack.training.trainer import config_of

DELIVERY_SECONDS = 300.0

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about a challenger.

    Attributes:
        model: The registered model.
        version: The challenger's version of it.
        source: ``RUN@version``.
        promoted: Whether it is (or was made) champion.
        reason: Why.
        against: The champion that it was compared with; None for the first.
        record: The whole decision, as stored with the run: both lists of returns, intervals, seeds, hashes; of one that was known,
            what its version keeps of it.
        was_known: Whether the decision existed before, so that nothing was played.
    """

    model: str
    version: int
    source: str
    promoted: bool
    reason: str
    against: int | None
    record: Mapping[str, Any]
    was_known: bool = False


def promote(
    run: RunDirectory | str,
    model: str,
    *,
    version: str | int = "best",
    gate: Gate | None = None,
    root: str | Path | None = None,
    lock_seconds: float = LOCK_SECONDS,
    notify: Notify = lambda text: None,
) -> Decision:
    """Let a run's version challenge the champion of a model, and make it champion if it passes the gate.

    Args:
        run: The run, or its name.
        model: Name of the registered model; created by the first promotion.
        version: ``best``, ``last``, ``v12``, or env steps.
        gate: What must be shown; omitted: better on 100 paired episodes.
        root: Folder of all runs, for a run that is named.
        lock_seconds: How long to wait for another promotion of the same model.
        notify: Called with each progress message.

    Raises:
        ConfigurationError: If challenger and champion cannot be compared, or a return is not finite.
        CheckpointNotFound: If there is no such version.
        PolicyNotStorable: If the policy cannot be stored as a model, or would act differently from the trained agent.
        ModelBroken: If the champion's files are missing or changed.
        RegistryUnavailable: If the registry does not answer. In all cases nothing was changed.
    """
    gate = gate or Gate()
    check_model_name(model)
    run = Root(root).find(run) if isinstance(run, str) else run
    config_of(run)  # raises for a run whose environment cannot be built
    challenger = policy_of(run, version)
    run_id = _delivered(run, notify)
    registry = ModelRegistry(Root(run.root), read_destination(run) or Destination())
    if registry.uri != ModelRegistry(Root(run.root)).uri:
        where = without_password(registry.uri)
        notify(f"the model is kept where its run is; other commands find it with MLFLOW_TRACKING_URI={where}")
    with registry.lock(model, lock_seconds, notify):
        for _ in range(_ATTEMPTS):
            champion = registry.champion(model)
            known = _known_decision(registry, model, challenger, champion, gate)
            if known is not None and gate.floor is not None and known[1].gate != gate.label and champion is not None:
                challenger, policy = as_stored(challenger)  # the champion itself, by a decision without this floor
                notify(f"{challenger.label}, the champion already, plays {gate.episodes} episodes")
                if reason := misses_floor(model, champion, challenger, policy, gate):
                    return _stays(model, *known, reason)
            if known is not None and DIGEST_TAG in known[0].tags:
                return _carry_out(registry, model, known[0], champion, asdict(known[1]), was_known=True)
            challenger, policy = as_stored(challenger)
            if known is not None and champion is not None and known[0].version == champion.version:
                notify(f"version {champion.version} was stored by an older rltrack; storing the same policy again")
                return _store_again(registry, model, challenger, run_id, *known)
            record = compare(registry, model, challenger, policy, champion, gate, notify)
            if number_of(registry.champion(model)) == number_of(champion):
                item = _register(registry, model, challenger, run_id, record)
                if record["promoted"]:
                    _pin(challenger, notify)
                return _carry_out(registry, model, item, champion, record, was_known=False)
            notify("another machine changed the champion during the comparison; comparing again")
    raise RegistryUnavailable(f"The champion of '{model}' changed {_ATTEMPTS} times during the comparison. Retry.")


def _pin(challenger: StoredPolicy, notify: Notify) -> None:
    """Exempt the version that becomes champion from the run's retention: another training may start from it."""
    try:
        challenger.run.store().pin(challenger.version)
    except (OSError, RltrackError) as error:
        notify(f"{challenger.label} could not be pinned: {error}")


def _delivered(run: RunDirectory, notify: Notify) -> str:
    """Make sure that the run is in MLflow; return MLflow's id of it.

    Raises:
        RegistryUnavailable: If it cannot be delivered, with the reason.
    """
    deadline = time.monotonic() + DELIVERY_SECONDS
    while not run.is_locked() and time.monotonic() < deadline:
        if ship_run(run, patience=0.0, notify=notify) != EXIT_BUSY:  # another process may be delivering it
            break
    found = read_bookmark(run)
    if found is None or "run_id" not in found.mlflow.state:
        if found is not None and "mlflow" not in found.sinks:
            problem = "it is not among the run's tracking.sinks."
        else:
            problem = (
                found.mlflow.problem.message
                if found is not None and found.mlflow.problem is not None
                else "no answer yet"
            )
        raise RegistryUnavailable(
            f"Run {run.name} is not in MLflow, and a model needs its run there: {problem} Nothing was changed. Fix that, run "
            f"`rltrack sync {run.name}`, and retry."
        )
    return str(found.mlflow.state["run_id"])


def _known_decision(
    registry: ModelRegistry, model: str, challenger: StoredPolicy, champion: Registered | None, gate: Gate
) -> tuple[Registered, VersionDecision] | None:
    """Return an earlier decision about the same policy and champion: repeating a test until it passes would invalidate it."""
    for item in reversed(registry.versions(model)):  # one that was stored again is the newer
        decision = item.decision
        if item.tags.get(POLICY_TAG) != challenger.key or decision is None:
            continue
        is_champion = champion is not None and champion.version == item.version
        same = decision.against == number_of(champion) and decision.gate == gate.label
        if is_champion or same:
            return item, decision
    return None


def _register(
    registry: ModelRegistry, model: str, challenger: StoredPolicy, run_id: str, record: dict[str, Any]
) -> Registered:
    """Store the policy and the whole decision, and make or update the model's version."""
    try:
        stored = store_policy(registry.client, challenger, run_id=run_id, role=CANDIDATE)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / f"{model}-{record['id'][:8]}.json"
            file.write_text(json.dumps(record, indent=1), encoding="utf-8")
            registry.client.log_artifact(run_id, str(file), "promotions")
    except RltrackError:
        raise
    except Exception as error:
        raise _not_stored(registry, error) from error
    low, high = record["challenger"]["interval"]
    tags = {
        DECISION_TAG: VersionDecision.of(record).to_tag(),
        POLICY_TAG: challenger.key,
        DIGEST_TAG: stored.tags[DIGEST_TAG],
        "rltrack.run": challenger.run.name,
        "rltrack.version": challenger.version.name,
        "rltrack.env_steps": str(challenger.version.env_steps),
        "rltrack.outcome": "promoted" if record["promoted"] else "refused",
        "rltrack.mean_return": f"{record['challenger']['mean']:.6g}",
        "rltrack.interval": f"{low:.6g} to {high:.6g}",
        "rltrack.configuration": record["challenger"]["configuration"],
    }
    earlier = [item for item in registry.versions(model) if item.model_id == stored.model_id]
    if earlier:
        registry.tag(model, earlier[-1].version, tags)
        item = Registered(earlier[-1].version, earlier[-1].model_id, run_id, tags)
    else:
        item = registry.register(model, stored.model_id, run_id, tags)
    registry.describe(model, item.version, _description(challenger, record))
    return item


def _stays(model: str, item: Registered, decision: VersionDecision, reason: str) -> Decision:
    """Return that the champion does not pass this gate; nothing is changed."""
    return Decision(model, item.version, item.source, False, reason, decision.against, asdict(decision))


def _store_again(
    registry: ModelRegistry,
    model: str,
    challenger: StoredPolicy,
    run_id: str,
    old: Registered,
    decision: VersionDecision,
) -> Decision:
    """Replace a champion that an older rltrack stored by a new version with the same policy.

    The decision about it is kept. After a kill it can be repeated: a version that exists is used.
    """
    try:
        stored = store_policy(registry.client, challenger, run_id=run_id, role=CANDIDATE)
    except RltrackError:
        raise
    except Exception as error:
        raise _not_stored(registry, error) from error
    tags = {**old.tags, DIGEST_TAG: stored.tags[DIGEST_TAG]}
    earlier = [item for item in registry.versions(model) if item.model_id == stored.model_id]
    item = earlier[-1] if earlier else registry.register(model, stored.model_id, run_id, tags)
    reason = f"the policy of version {old.version}, stored again with its digest; the decision is unchanged: {decision.reason}"
    registry.describe(model, item.version, reason)
    registry.point(model, CHAMPION, item.version)
    registry.record(model, Event("stored again", item.version, reason, item.version, item.source))
    return Decision(model, item.version, item.source, True, reason, decision.against, asdict(decision), was_known=True)


def _not_stored(registry: ModelRegistry, error: Exception) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"The policy could not be stored in {without_password(registry.uri)}: {' '.join(str(error).split())[:300]}. The champion "
        "is unchanged. Retry."
    )


def _description(challenger: StoredPolicy, record: Mapping[str, Any]) -> str:
    lines = [
        f"{'Promoted' if record['promoted'] else 'Not promoted'}: {challenger.label} ({challenger.version.env_steps:,} env steps), "
        f"{record['reason']}.",
        "",
        "| | mean return | IQM | episodes |",
        "|---|---:|---:|---:|",
    ]
    for who in ("challenger", "champion"):
        side = record[who]
        if side is not None:
            lines.append(
                f"| {who}: {side['source']} | {side['mean']:.6g} | {side['iqm']:.6g} | {len(side['returns'])} |"
            )
    lines += [
        "",
        f"The whole decision, with both lists of returns: `promotions/{record['model']}-{record['id'][:8]}.json` of its run.",
    ]
    return "\n".join(lines)


def _carry_out(
    registry: ModelRegistry,
    model: str,
    item: Registered,
    champion: Registered | None,
    record: Mapping[str, Any],
    *,
    was_known: bool,
) -> Decision:
    """Move the aliases as decided, and append to the history; can be repeated."""
    promoted = bool(record["promoted"])
    is_champion = champion is not None and champion.version == item.version
    before = registry.aliases(model)
    if promoted and not is_champion:
        carried_out = any(event.decision == record["id"][:8] for event in registry.history(model))
        registry.point(model, CHAMPION, item.version)
        if carried_out:  # and rolled back since
            registry.record(
                model, Event("promoted", item.version, record["reason"], item.version, item.source, record["id"])
            )
        if before.get(CHALLENGER) == item.version:
            registry.point(model, CHALLENGER, None)
    elif not promoted and not is_champion and before.get(CHALLENGER) != item.version:
        registry.point(model, CHALLENGER, item.version)
    registry.repair(model)  # writes the event, from the decision
    reason = record["reason"]
    if is_champion:
        reason = f"it is the champion already, version {item.version}"
    return Decision(
        model, item.version, item.source, promoted or is_champion, reason, record["against"], record, was_known
    )
