"""Promotion: only a better policy becomes champion. In words::

    take the model's lock
    until nobody else changed the champion meanwhile:
        load the champion; refuse a challenger of another environment or other spaces
        both play the same episodes, on seeds that no evaluation during training used
        ask the gate
    store the challenger's policy, and what was decided, with both lists of returns
    make it a version of the model, with the decision                          (in one step)
    if it was promoted: move the alias `champion`                              (the commit point)
    append to the history

Nothing is written before the gate has spoken. A promotion that was killed is asked for again: what was decided stands, and
only the rest is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from rltrack.agents import evaluation_environments
from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.config import MAX_EVAL_ENVS, TrainingConfig, identity, identity_hash
from rltrack.errors import (
    CheckpointNotFound,
    ConfigurationError,
    ModelBroken,
    ModelNotFound,
    RegistryUnavailable,
    RltrackError,
    RunNotFound,
)
from rltrack.evaluation.episodes import EVALUATION_STREAM, Evaluation, episode_seeds, play_episodes
from rltrack.evaluation.statistics import worse_by_chance
from rltrack.registry.gate import Gate, decide
from rltrack.registry.model_registry import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    Event,
    ModelRegistry,
    Registered,
    check_model_name,
)
from rltrack.registry.models import (
    CANDIDATE,
    POLICY_TAG,
    ROLE_TAG,
    LoadedPolicy,
    StoredPolicy,
    load_policy,
    policy_of,
    store_policy,
    write_model,
)
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.destination import Destination, read_destination
from rltrack.tracking.shipper import EXIT_BUSY, ship_run
from rltrack.training.trainer import config_of

LOCK_SECONDS = 3600.0
DELIVERY_SECONDS = 300.0
FALSE_ALARM_RATE = 0.01
COOL_DOWN_HOURS = 24.0

_PROMOTION_STREAM, _BASELINE_STREAM, _WATCH_STREAM = 0x9A7E, 0xBA5E, 0x3A7C
_ATTEMPTS = 5
_MAX_REASON = 2000

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a challenger.

    Attributes:
        model: The registered model.
        version: The challenger's version of it.
        source: ``RUN@version``.
        promoted: Whether it is (or was made) champion.
        reason: Why.
        against: The champion that it was compared with; None for the first.
        record: Everything, as kept with the run: both lists of returns, intervals, seeds, hashes.
        was_known: Whether it had been decided before, and nothing was played.
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
    tell: Tell = lambda text: None,
) -> Decision:
    """Let a run's version challenge the champion of a model, and make it champion if the gate says so.

    Args:
        run: The run, or its name.
        model: Name of the registered model; made with the first promotion.
        version: ``best``, ``last``, ``v12``, or env steps.
        gate: What must be shown; omitted: better on 100 paired episodes.
        root: Folder of all runs, for a run that is named.
        lock_seconds: How long to wait for another promotion of the same model.
        tell: Hears what happens.

    Raises:
        ConfigurationError: If challenger and champion cannot be compared, or a return is not finite.
        CheckpointNotFound: If there is no such version.
        PolicyNotStorable: If the policy cannot be stored as a model.
        ModelBroken: If the champion's files are gone.
        RegistryUnavailable: If the registry does not answer. In all cases nothing was changed.
    """
    gate = gate or Gate()
    check_model_name(model)
    run = Root(root).find(run) if isinstance(run, str) else run
    config_of(run)  # a run of which no environment can be built has nowhere to play
    challenger = policy_of(run, version)
    run_id = _delivered(run, tell)
    registry = ModelRegistry(Root(run.root), read_destination(run) or Destination())
    with registry.lock(model, lock_seconds, tell):
        for _ in range(_ATTEMPTS):
            champion = registry.champion(model)
            known = _known_decision(registry, model, challenger, champion, gate)
            if known is not None:
                item, record = known
                return _carry_out(registry, model, item, champion, record, was_known=True)
            record = _compare(registry, model, challenger, champion, gate, tell)
            if _number(registry.champion(model)) == _number(champion):
                item = _register(registry, model, challenger, run_id, record)
                return _carry_out(registry, model, item, champion, record, was_known=False)
            tell("another machine changed the champion meanwhile; comparing again")
    raise RegistryUnavailable(f"The champion of '{model}' changed {_ATTEMPTS} times while it was compared. Try again.")


def _delivered(run: RunDirectory, tell: Tell) -> str:
    """See to it that the run is in MLflow; return MLflow's id of it.

    Raises:
        RegistryUnavailable: If it cannot be delivered, with the reason.
    """
    deadline = time.monotonic() + DELIVERY_SECONDS
    while not run.is_locked() and time.monotonic() < deadline:
        if ship_run(run, patience=0.0, tell=tell) != EXIT_BUSY:  # another process may be at it
            break
    found = read_bookmark(run)
    if found is None or "run_id" not in found.mlflow.state:
        problem = (
            found.mlflow.problem.message if found is not None and found.mlflow.problem is not None else "no answer yet"
        )
        raise RegistryUnavailable(
            f"Run {run.name} is not in MLflow, and a model needs its run there: {problem} Nothing was changed. Mend that, then "
            f"`rltrack sync {run.name}` and try again."
        )
    return str(found.mlflow.state["run_id"])


# ---- comparing ----


def _compare(
    registry: ModelRegistry, model: str, challenger: StoredPolicy, champion: Registered | None, gate: Gate, tell: Tell
) -> dict[str, Any]:
    """Let both play, and ask the gate; returns the whole decision as plain data."""
    with tempfile.TemporaryDirectory() as scratch:  # what is played is what would be stored
        write_model(challenger, Path(scratch) / "model")
        policy = ExportedPolicy.load(Path(scratch) / "model" / "artifacts" / "policy")
    config = challenger.run.read_config()
    rival = None
    if champion is not None:
        rival = load_policy(
            registry.client, champion.model_id, f"The champion of '{model}', version {champion.version},"
        )
        check_comparable(policy, config, rival, f"version {champion.version} of '{model}'")
    configs = [config, *([rival.config] if rival else [])]
    stream = [model, challenger.key, str(_number(champion))]
    seeds = fresh_seeds(_PROMOTION_STREAM, stream, gate.episodes, configs)
    tell(f"{challenger.label} plays {gate.episodes} episodes")
    ours = play(policy, config, seeds)
    theirs = None
    if rival is not None and champion is not None:
        tell(f"the champion, version {champion.version} ({rival.source}), plays the same")
        theirs = play(rival.policy, rival.config, seeds)
    verdict = decide(ours.returns, None if theirs is None else theirs.returns, gate)
    record = {
        "id": uuid.uuid4().hex,
        "time": time.time(),
        "model": model,
        "promoted": verdict.promoted,
        "reason": verdict.reason,
        "against": _number(champion),
        "gate": gate.to_record(),
        "seeds": seeds,
        "challenger": {**_described(challenger.label, config), **_played(ours), "interval": list(verdict.interval)},
        "champion": None
        if theirs is None or rival is None
        else {**_described(rival.source, rival.config), **_played(theirs)},
        "difference": verdict.difference,
        "difference_interval": None if verdict.difference_interval is None else list(verdict.difference_interval),
        "baseline": None,
    }
    if verdict.promoted:
        # the returns that a policy was chosen by flatter it; what it is watched by must not
        again = fresh_seeds(_BASELINE_STREAM, stream, gate.episodes, configs)
        record["baseline"] = list(play(policy, config, again).returns)
    return record


def check_comparable(policy: ExportedPolicy, config: Mapping[str, Any], rival: LoadedPolicy, which: str) -> None:
    """Refuse a challenger that could not take the champion's place.

    Raises:
        ConfigurationError: With what differs.
    """
    differences = []
    for what in ("id", "kwargs"):
        ours, theirs = (side.get("environment", {}).get(what) for side in (config, rival.config))
        if (ours or {}) != (theirs or {}):
            differences.append(f"environment.{what}: {theirs} → {ours}")
    if policy.observation_space != rival.policy.observation_space:
        differences.append(f"observations: {rival.policy.observation_space} → {policy.observation_space}")
    if policy.action_space != rival.policy.action_space:
        differences.append(f"actions: {rival.policy.action_space} → {policy.action_space}")
    if differences:
        raise ConfigurationError(
            f"The challenger cannot take the place of {which} (champion's → challenger's):\n  "
            + "\n  ".join(differences)
            + "\nPromote it under another model name."
        )


def play(policy: ExportedPolicy, config: Mapping[str, Any], seeds: Sequence[int]) -> Evaluation:
    """Let a stored policy play, one episode a seed, in environments built from a run's configuration."""
    settings = TrainingConfig.from_mapping(config, source="the stored policy's configuration")
    env = evaluation_environments(settings, policy.policy, min(len(seeds), MAX_EVAL_ENVS))
    try:
        return play_episodes(policy, env, seeds)
    finally:
        env.close()


def fresh_seeds(stream: int, words: Sequence[str], count: int, configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return seeds that no evaluation of these configurations' trainings used; the same for the same words.

    Args:
        stream: What they are for.
        words: What they are made from.
        count: How many.
        configs: The configurations, as plain data.
    """
    used: set[int] = set()
    for config in configs:
        seed, episodes = int(config.get("seed") or 0), int((config.get("evaluation") or {}).get("episodes") or 0)
        for own in (seed, seed ^ EVALUATION_STREAM):
            used.update(episode_seeds(own, max(episodes, 1000)))
    digest = hashlib.sha256("\n".join(words).encode()).digest()
    drawn = np.random.SeedSequence([stream, *digest]).generate_state(count + len(used), dtype=np.uint32) >> 1
    return [int(value) for value in drawn if int(value) not in used][:count]


def _described(source: str, config: Mapping[str, Any]) -> dict[str, Any]:
    settings = TrainingConfig.from_mapping(config, source="the stored policy's configuration")
    return {"source": source, "configuration": identity_hash(identity(settings)), "seed": settings.seed}


def _played(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "returns": list(evaluation.returns),
        "lengths": list(evaluation.lengths),
        "mean": evaluation.mean,
        "iqm": evaluation.iqm,
        "interval": list(evaluation.interval),
    }


# ---- writing down ----


def _known_decision(
    registry: ModelRegistry, model: str, challenger: StoredPolicy, champion: Registered | None, gate: Gate
) -> tuple[Registered, dict[str, Any]] | None:
    """What was decided before about the same policy against the same champion: asking again until luck says yes is no test."""
    for item in registry.versions(model):
        decision = item.decision
        if item.tags.get(POLICY_TAG) != challenger.key or decision is None:
            continue
        is_champion = champion is not None and champion.version == item.version
        same = decision["against"] == _number(champion) and decision["gate"] == gate.to_record()
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
            file.write_text(json.dumps(record, indent=1))
            registry.client.log_artifact(run_id, str(file), "promotions")
    except RltrackError:
        raise
    except Exception as error:
        raise RegistryUnavailable(
            f"The policy could not be stored in {registry.uri}: {' '.join(str(error).split())[:300]}. The champion is as it was. "
            "Try again."
        ) from error
    low, high = record["challenger"]["interval"]
    tags = {
        DECISION_TAG: json.dumps(_short(record)),
        POLICY_TAG: challenger.key,
        "rltrack.run": challenger.run.name,
        "rltrack.version": challenger.version.name,
        "rltrack.env_steps": str(challenger.version.env_steps),
        "rltrack.outcome": "promoted" if record["promoted"] else "refused",
        "rltrack.reason": record["reason"][:_MAX_REASON],
        "rltrack.mean_return": f"{record['challenger']['mean']:.6g}",
        "rltrack.interval": f"{low:.6g} to {high:.6g}",
        "rltrack.configuration": record["challenger"]["configuration"],
    }
    earlier = [item for item in registry.versions(model) if item.tags.get(POLICY_TAG) == challenger.key]
    if earlier:
        registry.tag(model, earlier[-1].version, tags)
        item = Registered(earlier[-1].version, earlier[-1].model_id, run_id, tags)
    else:
        item = registry.register(model, stored.model_id, run_id, tags)
    registry.describe(model, item.version, _description(challenger, record))
    return item


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a decision fits a tag."""
    kept = {
        key: record[key] for key in ("id", "time", "promoted", "against", "gate", "difference", "difference_interval")
    }
    return {**kept, "reason": record["reason"][:_MAX_REASON]}


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
        f"Everything, with both lists of returns: `promotions/{record['model']}-{record['id'][:8]}.json` of its run.",
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
    """Move the aliases as was decided, and append to the history; harmless if that was done before."""
    promoted = bool(record["promoted"])
    is_champion = champion is not None and champion.version == item.version
    before = registry.aliases(model)
    if promoted and not is_champion:
        carried_out = any(event.decision == record["id"] for event in registry.history(model))
        registry.point(model, CHAMPION, item.version)
        if carried_out:  # and taken back since
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


def _number(champion: Registered | None) -> int | None:
    return None if champion is None else champion.version


def champion_origin(root: Root, model: str) -> tuple[str | None, TrainingConfig | None]:
    """Return what a retraining begins with: the champion's ``RUN@version`` where the root still has it, and its configuration.

    Raises:
        ModelBroken: If the champion's files are gone.
    """
    registry = ModelRegistry(root)
    champion = registry.champion(model)
    if champion is None:
        return None, None
    loaded = load_policy(registry.client, champion.model_id, f"The champion of '{model}', version {champion.version},")
    config = TrainingConfig.from_mapping(loaded.config, source=f"the champion of '{model}'")
    name, _, version = loaded.source.partition("@")
    try:
        root.find(name).store().find(version)
    except (RunNotFound, CheckpointNotFound):
        return None, config
    return loaded.source, config


# ---- what follows a promotion ----


def rollback(
    root: Root, model: str, to: int | None = None, *, lock_seconds: float = LOCK_SECONDS, tell: Tell = lambda text: None
) -> Event:
    """Make an earlier version champion again.

    Args:
        root: The root.
        model: The registered model.
        to: Which version; omitted: the champion before this one.
        lock_seconds: How long to wait for a promotion of the same model.
        tell: Hears what happens.

    Raises:
        ModelNotFound: If there is no such model or version, or no earlier champion.
        ModelBroken: If its files are gone; nothing was changed.
    """
    registry = ModelRegistry(root)
    registry.check_exists(model)
    with registry.lock(model, lock_seconds, tell):
        champion = _number(registry.champion(model))
        if to is None:
            to = _champion_before(registry, model, champion)
        target = registry.version(model, to)
        if target.version == champion:
            raise ConfigurationError(f"Version {to} of model '{model}' is the champion already; nothing was changed.")
        load_policy(registry.client, target.model_id, f"Version {to} of '{model}'")
        registry.point(model, CHAMPION, to)
        event = Event("rolled back", to, f"from version {champion}", to, target.source)
        registry.record(model, event)
        return event


def _champion_before(registry: ModelRegistry, model: str, champion: int | None) -> int:
    """The champion before this one; going back twice goes back two."""
    stack: list[int] = []
    for event in registry.history(model):
        if event.champion is None or (stack and stack[-1] == event.champion):
            continue
        if event.kind == "rolled back" and event.champion in stack:
            del stack[stack.index(event.champion) + 1 :]
        else:
            stack.append(event.champion)
    existing = {item.version for item in registry.versions(model)}
    earlier = [number for number in stack if number != champion and number in existing]
    if not earlier:
        raise ModelNotFound(
            f"Model '{model}' has no earlier champion to go back to. Name a version: rltrack rollback {model} --to VERSION."
        )
    return earlier[-1]


def prune_models(
    root: Root, model: str, keep: int = 5, *, lock_seconds: float = LOCK_SECONDS, tell: Tell = lambda text: None
) -> list[int]:
    """Delete versions that are neither pointed to by an alias nor among the newest.

    Args:
        root: The root.
        model: The registered model.
        keep: How many of the newest champions, and of the newest versions at all, stay.
        lock_seconds: How long to wait for a promotion of the same model.
        tell: Hears what happens.

    Returns:
        The numbers of the deleted versions.
    """
    if keep < 1:
        raise ConfigurationError(f"keep is {keep}; at least 1 version stays beside what aliases point to.")
    registry = ModelRegistry(root)
    registry.check_exists(model)
    with registry.lock(model, lock_seconds, tell):
        versions = registry.versions(model)
        champions = list(dict.fromkeys(event.champion for event in reversed(registry.history(model)) if event.champion))
        kept = {*registry.aliases(model).values(), *champions[:keep], *(item.version for item in versions[-keep:])}
        doomed = [item for item in versions if item.version not in kept]
        for item in doomed:
            registry.delete(model, item)
            _delete_candidate(registry, item)
        if doomed:
            numbers = ", ".join(str(item.version) for item in doomed)
            champion = _number(registry.champion(model))
            registry.record(model, Event("pruned", doomed[-1].version, f"versions {numbers} were deleted", champion))
        return [item.version for item in doomed]


def _delete_candidate(registry: ModelRegistry, item: Registered) -> None:
    """Delete the stored policy too, unless it is its run's best or final one."""
    with contextlib.suppress(Exception):  # it may be gone already, or another model's version
        stored = registry.client.get_logged_model(item.model_id)
        links = json.loads(stored.tags.get("mlflow.modelVersions", "[]"))
        if stored.tags.get(ROLE_TAG) == CANDIDATE and len(links) <= 1:
            registry.client.delete_logged_model(item.model_id)
            location = urlsplit(stored.artifact_location)
            folder = Path(unquote(location.path))
            if registry.is_own and location.scheme in ("", "file") and folder.is_relative_to(registry.root.path):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Watch:
    """What an evaluation of a champion found.

    Attributes:
        model: The registered model.
        version: The champion.
        evaluation: What it played.
        baseline: Its returns at the time of its promotion, on other seeds than those that it was chosen by.
        by_chance: How likely such low returns are if nothing changed.
        degraded: Whether that is at most the false-alarm rate.
        alarm: Whether to raise an alarm: degraded, and none was raised within the cool-down.
        reason: In words.
    """

    model: str
    version: int
    evaluation: Evaluation
    baseline: tuple[float, ...]
    by_chance: float
    degraded: bool
    alarm: bool
    reason: str


def evaluate_champion(
    root: Root,
    model: str,
    *,
    episodes: int = 100,
    moment: str | None = None,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    cool_down_hours: float = COOL_DOWN_HOURS,
    tell: Tell = lambda text: None,
) -> Watch:
    """Play a champion on fresh seeds, and find out whether it got worse since its promotion.

    Args:
        root: The root.
        model: The registered model.
        episodes: How many to play.
        moment: What the seeds are made from; the same moment plays the same episodes. Omitted: now.
        false_alarm_rate: Probability of calling a champion degraded that is as it was, for each evaluation.
        cool_down_hours: No second alarm about the same champion within this time.
        tell: Hears what happens.

    Raises:
        ModelNotFound: If there is no such model or champion.
        ModelBroken: If the champion's files are gone.
    """
    if episodes < 1 or not 0 < false_alarm_rate < 1:
        raise ConfigurationError(
            f"episodes is {episodes} and false_alarm_rate {false_alarm_rate}; at least 1, and a probability between 0 and 1."
        )
    registry = ModelRegistry(root)
    champion = registry.by_alias(model, CHAMPION)
    baseline = baseline_of(registry, model, champion)
    loaded = load_policy(registry.client, champion.model_id, f"The champion of '{model}', version {champion.version},")
    words = [model, str(champion.version), moment or repr(time.time())]
    tell(f"the champion, version {champion.version} ({loaded.source}), plays {episodes} episodes")
    evaluation = play(loaded.policy, loaded.config, fresh_seeds(_WATCH_STREAM, words, episodes, [loaded.config]))
    if not np.isfinite(evaluation.returns).all():
        raise ConfigurationError(
            f"The champion of '{model}' got returns that are not finite; look at the environment's rewards."
        )
    by_chance = worse_by_chance(baseline, evaluation.returns)
    degraded = by_chance <= false_alarm_rate
    reason = (
        f"mean return {evaluation.mean:.6g}, at its promotion {np.mean(baseline):.6g}; as low by chance with probability "
        f"{by_chance:.2g} (alarm at {false_alarm_rate:g})"
    )
    alarm = False
    if degraded:
        with registry.lock(model, LOCK_SECONDS, tell):
            raised = [event.time for event in registry.history(model)
                      if event.kind == "degraded" and event.version == champion.version]  # fmt: skip
            alarm = not raised or time.time() - raised[-1] >= cool_down_hours * 3600
            if alarm:
                number = _number(registry.champion(model))
                registry.record(model, Event("degraded", champion.version, reason, number, champion.source))
    return Watch(model, champion.version, evaluation, tuple(baseline), by_chance, degraded, alarm, reason)


def baseline_of(registry: ModelRegistry, model: str, champion: Registered) -> list[float]:
    """Return the returns that a champion is watched by.

    Raises:
        ModelBroken: If the record of its promotion is gone.
    """
    decision = champion.decision
    try:
        if decision is None or champion.run_id is None:
            raise FileNotFoundError("it was not promoted by rltrack")
        with tempfile.TemporaryDirectory() as scratch:
            name = f"promotions/{model}-{decision['id'][:8]}.json"
            record = json.loads(Path(registry.client.download_artifacts(champion.run_id, name, scratch)).read_text())
    except Exception as error:
        raise ModelBroken(
            f"The record of the promotion of version {champion.version} of '{model}' cannot be read: {error}. Promote the champion "
            "again, or another run."
        ) from error
    return list(record["baseline"] or record["challenger"]["returns"])
