"""A policy of this root, or of the registry, as an SB3 model that can be written to files for other programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rltrack.agents import LEARNER_PARTS, build_for_acting
from rltrack.checkpoints import Version
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.registry.champions import load_champion
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.permissions import check_names
from rltrack.registry.registered import CHALLENGER, CHAMPION
from rltrack.runs import Root, RunDirectory, RunRef
from rltrack.training.trainer import config_of


@dataclass(frozen=True, slots=True)
class Exportable:
    """A policy in its SB3 model.

    Attributes:
        label: ``RUN@v12``.
        model: SB3's model, with an environment built as in training and its normalisation statistics.
        config: The run's configuration.
        run: The run, if it was named; None for a model of the registry.
        version: Its version, likewise.
    """

    label: str
    model: Any
    config: TrainingConfig
    run: RunDirectory | None = None
    version: Version | None = None


@contextlib.contextmanager
def exportable(root: Root, what: str) -> Iterator[Exportable]:
    """Build the SB3 model of a policy; its environment is closed at the end.

    Args:
        root: The root.
        what: ``RUN``, ``RUN@version``, or ``MODEL@champion``, ``MODEL@challenger``.

    Raises:
        RunNotFound: If there is no such run; ModelNotFound, if there is no such model.
        CheckpointNotFound: If there is no such version.
        ModelBroken: If the model's files are missing or changed.
        ConfigurationError: If its environment cannot be built, or its configuration names code that is not allowed here.
    """
    name, _, version = what.partition("@")
    if version in (CHAMPION, CHALLENGER):
        registry = ModelRegistry(root)
        loaded = load_champion(registry, name, registry.by_alias(name, version))
        check_names(loaded, root)
        config = TrainingConfig.from_mapping(loaded.config, source=f"the {version} of '{name}'")
        agent, env = build_for_acting(config)
        try:
            loaded.policy.copy_to(agent.model)
            agent.model.n_envs = config.environment.n_envs
            yield Exportable(loaded.source, agent.model, config)
        finally:
            close_all(env)
        return
    ref = RunRef.parse(what)
    run = root.find(ref.run)
    config, store = config_of(run), run.store()
    found = store.find(ref.version or "best")
    state = store.read(found, LEARNER_PARTS)
    agent, env = build_for_acting(config)
    try:
        agent.restore(state)
        agent.model.num_timesteps, agent.model.n_envs = found.env_steps, config.environment.n_envs
        yield Exportable(f"{run.name}@{found.name}", agent.model, config, run, found)
    finally:
        close_all(env)
