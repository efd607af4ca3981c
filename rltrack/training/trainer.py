"""Trainer: from a configuration to a finished run; and back from a run to its agent."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrack.agents import LEARNER_PARTS, POLICY_PARTS, State, build_agent, build_for_acting, choose_vectorization
from rltrack.checkpoints import Version
from rltrack.cleanup import close_all
from rltrack.config import MAX_EVAL_ENVS, TrainingConfig
from rltrack.errors import ConfigurationError, RunNotFound
from rltrack.evaluation.episodes import EVALUATION_STREAM, Evaluation, episode_seeds, play_episodes
from rltrack.identity import identity
from rltrack.runs import Root, RunDirectory, RunRef
from rltrack.secrets import one_line
from rltrack.training.fetching import fetch
from rltrack.training.named_hooks import build_hooks
from rltrack.training.train_loop import TrainingLoop

if TYPE_CHECKING:
    from rltrack.training.control import Control
    from rltrack.training.live import LiveTraining
    from rltrack.training.plan import TrainingPlan
    from rltrack.training.progress import TrainingStatistics
    from rltrack.training.reporter import ProgressReporter


class Trainer:
    """Trains what a configuration describes.

    An existing run of the configuration's name is resumed; a finished one is only read.

    Args:
        config: A `TrainingConfig`, or a nested mapping of the same shape.
        root: Folder of all runs; omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
        reporter: Shows the progress.
        hooks: Objects with some of the methods of `TrainingHook`; one, or several.
        control: What was asked from outside, where it outlives this training; omitted: one of its own.

    Raises:
        ConfigurationError: If the configuration is not valid.
    """

    def __init__(
        self,
        config: TrainingConfig | Mapping[str, Any],
        *,
        root: str | Path | None = None,
        reporter: ProgressReporter | None = None,
        hooks: Any = (),
        control: Control | None = None,
    ) -> None:
        self.config = config if isinstance(config, TrainingConfig) else TrainingConfig.from_mapping(config)
        self.root = root
        self.loop = TrainingLoop(
            settings=self.config,
            name=self.config.name,
            root=root,
            resume=True,
            seed=None,  # the agent is built with the configuration's seed
            identity=identity(self.config),
            config=self.config.to_mapping(),
            hooks=hooks,
            reporter=reporter,
            control=control,
        )
        self._env: Any = None

    @property
    def run_directory(self) -> RunDirectory | None:
        """The run's folder; None before training began."""
        name = self.loop.statistics.run
        return None if name is None else Root(self.root).directory(name)

    def train(self) -> TrainingStatistics:
        """Build agent and environment, and train.

        Returns:
            What the training amounted to.

        Raises:
            ConfigurationError: If algorithm, environment and hyperparameters do not fit together; nothing was started.
            MissingExtra: If a package is missing.
            NameTaken: If the name belongs to a run with another configuration.
        """
        try:
            return self.prepare().run()
        finally:
            self.close()

    def prepare(self) -> LiveTraining:
        """Build agent and environment and prepare to train, for a caller that calls the methods of the live training itself.

        Raises:
            ConfigurationError, MissingExtra, NameTaken: As `train`.
        """
        with self.loop.reporter.waiting():
            plan = self._complete()
        return self.loop.prepare(plan)

    def close(self) -> None:
        """Release everything; harmless if called twice."""
        self.loop.close()
        if self._env is not None:
            close_all(self._env)
            self._env = None

    def _complete(self) -> TrainingPlan:
        """Return the loop's plan with agent, environment, and what the run under this name has decided before."""
        root = Root(self.root)
        root.check_writable()
        self.config = self._with_order_of_wrappers(root)
        start_from = self.config.start_from
        _refuse_script_only(self.config)
        state = None if start_from is None else starting_state(root, start_from)
        agent, self._env = self._build(root)
        hooks, callbacks = build_hooks(self.config.hooks)
        for hook in hooks:
            self.loop.add_hook(hook)
        return dataclasses.replace(
            self.loop.plan,
            callbacks=tuple(callbacks),
            agent=agent,
            env=self._env,
            identity=identity(self.config),
            config=self.config.to_mapping(),
            start_from=state,
            **self._as_in_script(root),
        )

    def _as_in_script(self, root: Root) -> dict[str, Any]:
        """Return what to take over from a run that a script began: its seed, and the identity that it recorded."""
        run = root.directory(self.config.name) if self.config.name is not None else None
        known = None if run is None else run.configuration_record()
        if run is None or known is None or not (attempts := run.attempts()):
            return {}
        if "training" not in known["identity"]:
            raise ConfigurationError(
                f"Run {run.name} was recorded by a script's TrackingCallback, which keeps policies and no state to resume "
                f"from. Start a new run with its policy: rltrack train --from {run.name}@last --name another; or train with "
                "TrainingLoop, which keeps all of it."
            )
        found: dict[str, Any] = {"seed": attempts[0].get("seed")}
        by_script = "environment" not in known["identity"] or (self.config.hooks and "hooks" not in known["identity"])
        if by_script and identity(config_of(run)) == identity(self.config):
            found["accepted_identities"] = (known["identity"],)
        return found

    def _build(self, root: Root) -> tuple[Any, Any]:
        """Build agent and environment."""
        vectorization = self._vectorization(root)
        if vectorization is None:
            return build_agent(self.config)
        chosen, why = vectorization
        environment = self.config.environment.model_copy(update={"vectorization": chosen})
        agent, env = build_agent(self.config.model_copy(update={"environment": environment}))
        agent.choices["vectorization"] = {"chosen": chosen, "reason": why}
        return agent, env

    def _with_order_of_wrappers(self, root: Root) -> TrainingConfig:
        """Choose the place of the wrappers, if the configuration does not: as in the run that is resumed; else inside Monitor."""
        environment = self.config.environment
        if not environment.wrappers or environment.wrappers_inside_monitor is not None:
            return self.config
        run, inside = self._earlier_run(root), True
        if run is not None and (known := run.configuration_record()) is not None:
            inside = bool((known["identity"].get("environment") or {}).get("wrappers_inside_monitor"))
        ordered = environment.model_copy(update={"wrappers_inside_monitor": inside})
        return self.config.model_copy(update={"environment": ordered})

    def _earlier_run(self, root: Root) -> RunDirectory | None:
        """Return the folder of the run under this name, fetched from its store if it is there; None without a name."""
        name, store = self.config.name, self.config.checkpoints.store
        if name is not None and store is not None:
            with contextlib.suppress(RunNotFound):
                fetch(root, name, store)
        return None if name is None else root.directory(name)

    def _vectorization(self, root: Root) -> tuple[str, str] | None:
        """Where the environments live, if it is chosen by measurement: as at the run's first start."""
        if self.config.environment.vectorization != "auto":
            return None
        run = self._earlier_run(root)
        if run is not None:
            attempts = run.attempts()
            known = ((attempts[0].get("choices") if attempts else None) or {}).get("vectorization")
            if known is not None:
                return known["chosen"], known["reason"]
        return choose_vectorization(self.config.environment)


def starting_state(root: Root, start_from: str) -> State:
    """Return what a new run takes over from ``RUN`` or ``RUN@version``: weights, optimizer, normalisation.

    The newest resumable version is the default. A best version holds no optimizer; the new run's is then fresh.

    Raises:
        RunNotFound: If there is no such run.
        CheckpointNotFound: If there is no such version.
    """
    ref = RunRef.parse(start_from)
    store = root.find(ref.run).store()
    return store.read(store.find(ref.version or "last"), LEARNER_PARTS)


def _refuse_script_only(config: TrainingConfig) -> None:
    if config.script_only:
        raise ConfigurationError(
            f"Only the script that began this run can train it further: {'; '.join(config.script_only)}. Run the script with "
            "TrainingLoop(…, resume=True); or train with what the configuration has: --set script_only=[]."
        )


def config_of(run: RunDirectory, env_id: str | None = None) -> TrainingConfig:
    """Return the configuration of a run.

    Args:
        run: The run.
        env_id: Its environment, where a script made one that it could not name; it is kept for the next time.

    Raises:
        ConfigurationError: If a script made its agent in a way that no configuration describes.
    """
    stored = run.configuration()
    return stored.to_training() if env_id is None else stored.with_environment(env_id)


def agent_of(
    run: RunDirectory,
    version: str | int,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    env_id: str | None = None,
    evaluate_in_processes: bool = False,
) -> tuple[Any, Any, Version, TrainingConfig]:
    """Build a run's agent with the policy of a version, to act.

    Args:
        run: The run.
        version: ``best``, ``last``, ``v12``, or a number of env steps.
        env_kwargs: Further arguments of its environment.
        env_id: Its environment, where a script made one that it could not name; it is then written into the run's configuration.
        evaluate_in_processes: Each evaluation environment in a process of its own.

    Returns:
        The agent, its environment, the version, and the run's configuration.
    """
    config = whole = config_of(run, env_id)
    if env_kwargs:
        section = config.environment
        section = section.model_copy(update={"kwargs": {**section.kwargs, **env_kwargs}})
        config = config.model_copy(update={"environment": section})
    store = run.store()
    found = store.find(version)
    state = store.read(found, POLICY_PARTS)
    agent, env = build_for_acting(config, evaluate_in_processes=evaluate_in_processes)
    try:
        agent.restore(state)
    except (RuntimeError, KeyError, ValueError) as error:
        close_all(env)
        raise ConfigurationError(
            f"The policy of {run.name} {found.name} does not fit a model in {config.environment.id}: {one_line(error)}."
        ) from error
    if env_id is not None:
        run.write_config({**whole.to_mapping(), "name": run.name})
    return agent, env, found, config


def load_agent(run: str, version: str | int = "best", root: str | Path | None = None, *, env: str | None = None) -> Any:
    """Return a run's SB3 model, ready to predict.

    Its environment (``model.get_env()``) is built as in training, with the normalisation statistics of that version,
    frozen. Observations that come from it are ready for ``model.predict``; for raw ones from elsewhere, call
    ``model.get_vec_normalize_env().normalize_obs(obs)`` first where the run normalises.

    Args:
        run: The run's name.
        version: ``best``, ``last``, ``v12``, or a number of env steps.
        root: Folder of all runs.
        env: ``package.module:Name`` of its environment, where a script made one that it could not name.

    Raises:
        RunNotFound: If there is no such run.
        CheckpointNotFound: If there is no such version; the committed ones are named.
    """
    agent, _, _, _ = agent_of(Root(root).find(run), version, env_id=env)
    model: Any = agent.model
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.training = False
        normalize.norm_reward = False
    return model


def evaluate_run(
    run: RunDirectory,
    version: str | int = "best",
    *,
    episodes: int = 100,
    seed: int | None = None,
    deterministic: bool = True,
    processes: int | None = None,
    env_id: str | None = None,
) -> tuple[Version, Evaluation]:
    """Play a version's policy in fresh environments.

    Args:
        run: The run.
        version: ``best``, ``last``, ``v12``, or a number of env steps.
        episodes: How many to play, at least 1.
        seed: Seed of the episodes; None for ones that no evaluation during training used.
        deterministic: Act by the policy's mode.
        processes: Play in so many environments, each in a process of its own, where a step is expensive; None for all in
            this process.
        env_id: As `agent_of`.

    Raises:
        ConfigurationError: If `episodes` or `processes` is less than 1.
        CheckpointNotFound: If there is no such version.
    """
    if episodes < 1:
        raise ConfigurationError(f"episodes is {episodes}; play at least 1.")
    if processes is not None and processes < 1:
        raise ConfigurationError(f"processes is {processes}; use at least 1, or leave it out.")
    agent, env, found, config = agent_of(run, version, env_id=env_id, evaluate_in_processes=processes is not None)
    try:
        evaluation_env = agent.make_evaluation_env(None, min(episodes, processes or MAX_EVAL_ENVS))
        try:
            own_seed = config.seed ^ EVALUATION_STREAM if seed is None else seed
            seeds = episode_seeds(own_seed, episodes)
            return found, play_episodes(
                agent,
                evaluation_env,
                seeds,
                env_steps=found.env_steps,
                deterministic=deterministic,
                limits=config.evaluation.limits,
            )
        finally:
            close_all(evaluation_env)
    finally:
        close_all(env)
