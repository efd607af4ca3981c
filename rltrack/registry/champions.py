"""What follows a promotion: rollback, deletion of old versions, evaluation of a champion, retraining it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow.exceptions import MlflowException

from rltrack.addresses import file_path
from rltrack.config import TrainingConfig
from rltrack.errors import CheckpointNotFound, ConfigurationError, ModelBroken, ModelNotFound, RunNotFound
from rltrack.evaluation.episodes import Evaluation
from rltrack.evaluation.statistics import permutation_p_value
from rltrack.files import leads_into
from rltrack.registry.digest import DIGEST_TAG
from rltrack.registry.loading import LoadedPolicy, load_policy
from rltrack.registry.match import EVALUATION_SEEDS, fresh_seeds, play_stored
from rltrack.registry.model_registry import LINKS_TAG, LOCK_SECONDS, ModelRegistry, Notify
from rltrack.registry.models import CANDIDATE, ROLE_TAG
from rltrack.registry.permissions import check_names
from rltrack.registry.progress_bars import without_progress_bars
from rltrack.registry.registered import CHAMPION, Event, Registered, check_decision_id, number_of
from rltrack.runs import Root
from rltrack.tracking.destination import without_password
from rltrack.tracking.sinks.answers import explain

FALSE_ALARM_RATE = 0.01
COOL_DOWN_HOURS = 24.0


def rollback(
    root: Root,
    model: str,
    to: int | None = None,
    *,
    lock_seconds: float = LOCK_SECONDS,
    notify: Notify = lambda text: None,
) -> Event:
    """Make an earlier version champion again.

    Args:
        root: The root.
        model: The registered model.
        to: Which version; omitted: the champion before this one.
        lock_seconds: How long to wait for a promotion of the same model.
        notify: Called with each progress message.

    Raises:
        ModelNotFound: If there is no such model or version, or no earlier champion.
        ModelBroken: If its files are missing; nothing was changed.
    """
    registry = ModelRegistry(root)
    registry.check_exists(model)
    with registry.lock(model, lock_seconds, notify):
        champion = number_of(registry.champion(model))
        if to is None:
            to = _champion_before(registry, model, champion)
        target = registry.version(model, to)
        if target.version == champion:
            raise ConfigurationError(f"Version {to} of model '{model}' is the champion already; nothing was changed.")
        load_policy(registry.client, target.model_id, f"Version {to} of '{model}'", target.tags.get(DIGEST_TAG))
        registry.point(model, CHAMPION, to)
        event = Event("rolled back", to, f"from version {champion}", to, target.source)
        registry.record(model, event)
        return event


def _champion_before(registry: ModelRegistry, model: str, champion: int | None) -> int:
    """Return the champion before this one; two rollbacks go back by two."""
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
            f"Model '{model}' has no earlier champion to roll back to. Name a version: rltrack rollback {model} --to VERSION."
        )
    return earlier[-1]


def prune_models(
    root: Root, model: str, keep: int = 5, *, lock_seconds: float = LOCK_SECONDS, notify: Notify = lambda text: None
) -> list[int]:
    """Delete versions that have no alias and are not among the newest.

    Args:
        root: The root.
        model: The registered model.
        keep: How many of the newest champions, and of the newest versions, are kept.
        lock_seconds: How long to wait for a promotion of the same model.
        notify: Called with each progress message.

    Returns:
        The numbers of the deleted versions.
    """
    if keep < 1:
        raise ConfigurationError(f"keep is {keep}; it must be at least 1.")
    registry = ModelRegistry(root)
    registry.check_exists(model)
    with registry.lock(model, lock_seconds, notify):
        versions = registry.versions(model)
        champions = list(dict.fromkeys(event.champion for event in reversed(registry.history(model)) if event.champion))
        kept = {*registry.aliases(model).values(), *champions[:keep], *(item.version for item in versions[-keep:])}
        old = [item for item in versions if item.version not in kept]
        for item in old:
            registry.delete(model, item)
            _delete_candidate(registry, model, item, notify)
        if old:
            numbers = ", ".join(str(item.version) for item in old)
            champion = number_of(registry.champion(model))
            registry.record(model, Event("pruned", old[-1].version, f"versions {numbers} were deleted", champion))
        return [item.version for item in old]


def _delete_candidate(registry: ModelRegistry, model: str, item: Registered, notify: Notify) -> None:
    """Delete the stored policy too, unless it is its run's best or final one, or also another model's version."""
    try:
        stored = registry.client.get_logged_model(item.model_id)
        links = json.loads(stored.tags.get(LINKS_TAG, "[]"))
        others = [link for link in links if (link["name"], link["version"]) != (model, item.version)]
        if others:
            registry.client.set_logged_model_tags(item.model_id, {LINKS_TAG: json.dumps(others)})
        elif stored.tags.get(ROLE_TAG) == CANDIDATE:
            registry.client.delete_logged_model(item.model_id)
            folder = file_path(stored.artifact_location)
            if registry.is_own and folder is not None and leads_into(folder, registry.root.path) and folder.exists():
                shutil.rmtree(folder)
        elif links:
            registry.client.delete_logged_model_tag(item.model_id, LINKS_TAG)
    except Exception as error:  # the version is deleted; what stays is only disk space
        if not (isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"):
            notify(
                f"the policy of version {item.version} stays in MLflow: {explain(error, without_password(registry.uri))[0]}"
            )


@dataclass(frozen=True, slots=True)
class ChampionEvaluation:
    """The result of an evaluation of a champion.

    Attributes:
        model: The registered model.
        version: The champion.
        evaluation: Its returns now.
        baseline: Its returns at its promotion, on other seeds than those of the gate.
        p_value: Probability of returns this low if nothing changed.
        degraded: Whether the p-value is at most the false-alarm rate.
        alarm: Whether to raise an alarm: degraded, and none was raised within the cool-down.
        reason: The numbers, as a sentence.
    """

    model: str
    version: int
    evaluation: Evaluation
    baseline: tuple[float, ...]
    p_value: float
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
    notify: Notify = lambda text: None,
) -> ChampionEvaluation:
    """Play a champion on fresh seeds, and test whether it got worse since its promotion.

    Args:
        root: The root.
        model: The registered model.
        episodes: How many to play.
        moment: The seeds are derived from it; the same moment plays the same episodes. Omitted: now.
        false_alarm_rate: Probability, for each evaluation, of calling an unchanged champion degraded.
        cool_down_hours: No second alarm about the same champion within this time.
        notify: Called with each progress message.

    Raises:
        ModelNotFound: If there is no such model or champion.
        ModelBroken: If the champion's files are missing or changed.
        ConfigurationError: If its configuration names code that is not allowed here.
    """
    if episodes < 1 or not 0 < false_alarm_rate < 1:
        raise ConfigurationError(
            f"episodes is {episodes} and false_alarm_rate {false_alarm_rate}; at least 1, and a probability between 0 and 1."
        )
    registry = ModelRegistry(root)
    champion = registry.by_alias(model, CHAMPION)
    baseline = baseline_of(registry, model, champion)
    loaded = load_champion(registry, model, champion)
    words = [model, str(champion.version), moment or repr(time.time())]
    notify(f"the champion, version {champion.version} ({loaded.source}), plays {episodes} episodes")
    evaluation = play_stored(loaded, root, fresh_seeds(EVALUATION_SEEDS, words, episodes, [loaded.config]))
    if not np.isfinite(evaluation.returns).all():
        raise ConfigurationError(
            f"The champion of '{model}' got returns that are not finite; check the environment's rewards."
        )
    p_value = permutation_p_value(baseline, evaluation.returns)
    degraded = p_value <= false_alarm_rate
    reason = (
        f"mean return {evaluation.mean:.6g}, at its promotion {np.mean(baseline):.6g}; p-value "
        f"{p_value:.2g} (alarm at {false_alarm_rate:g})"
    )
    alarm = False
    if degraded:
        with registry.lock(model, LOCK_SECONDS, notify):
            raised = [event.time for event in registry.history(model)
                      if event.kind == "degraded" and event.version == champion.version]  # fmt: skip
            alarm = not raised or time.time() - raised[-1] >= cool_down_hours * 3600
            if alarm:
                number = number_of(registry.champion(model))
                registry.record(model, Event("degraded", champion.version, reason, number, champion.source))
    return ChampionEvaluation(model, champion.version, evaluation, tuple(baseline), p_value, degraded, alarm, reason)


def baseline_of(registry: ModelRegistry, model: str, champion: Registered) -> list[float]:
    """Return the returns that later evaluations of a champion are compared with.

    Raises:
        ModelBroken: If the record of its promotion is missing.
    """
    decision = champion.decision
    try:
        if decision is None or champion.run_id is None:
            raise FileNotFoundError("it was not promoted by rltrack")
        with tempfile.TemporaryDirectory() as scratch, without_progress_bars():
            name = f"promotions/{model}-{check_decision_id(decision.id)[:8]}.json"
            record = json.loads(
                Path(registry.client.download_artifacts(champion.run_id, name, scratch)).read_text(encoding="utf-8")
            )
            return [float(value) for value in record["baseline"] or record["challenger"]["returns"]]
    except Exception as error:
        raise ModelBroken(
            f"The record of the promotion of version {champion.version} of '{model}' cannot be read: {error}. Promote the champion "
            "again, or another run."
        ) from error


def load_champion(registry: ModelRegistry, model: str, champion: Registered) -> LoadedPolicy:
    """Load a model's champion.

    Raises:
        ModelBroken: If its files are missing or changed.
    """
    what = f"The champion of '{model}', version {champion.version},"
    return load_policy(registry.client, champion.model_id, what, champion.tags.get(DIGEST_TAG))


def champion_origin(root: Root, model: str) -> tuple[str | None, TrainingConfig | None]:
    """Return what a retraining starts from: the champion's ``RUN@version`` if the root still has it, and its configuration.

    Raises:
        ModelBroken: If the champion's files are missing or changed.
        ConfigurationError: If its configuration names code that is not allowed here.
    """
    registry = ModelRegistry(root)
    champion = registry.champion(model)
    if champion is None:
        return None, None
    loaded = load_champion(registry, model, champion)
    check_names(loaded, root, to_train=True)
    config = TrainingConfig.from_mapping(loaded.config, source=f"the champion of '{model}'")
    name, _, version = loaded.source.partition("@")
    try:
        root.find(name).store().find(version)
    except (RunNotFound, CheckpointNotFound):
        return None, config
    return loaded.source, config
