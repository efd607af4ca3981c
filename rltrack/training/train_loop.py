"""TrainingLoop: what a user calls to train an agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rltrack.agents.protocol import MakeEnv
from rltrack.config import LoopSettings
from rltrack.errors import ConfigurationError
from rltrack.tracking.metrics import MetricsTracker
from rltrack.training.control import Control
from rltrack.training.hooks import EarlyStoppingHook, HookList, LoggingHook, TrainingHook
from rltrack.training.live import LiveTraining
from rltrack.training.plan import TrainingPlan, evaluating_settings
from rltrack.training.prepare import prepare
from rltrack.training.progress import TrainingProgress, TrainingState, TrainingStatistics
from rltrack.training.reporter import ProgressReporter
from rltrack.training.strategies import Strategy, TrainingStrategy, make_strategy

__all__ = [
    "EarlyStoppingHook",
    "LoggingHook",
    "MetricsTracker",
    "ProgressReporter",
    "TrainingHook",
    "TrainingLoop",
    "TrainingProgress",
    "TrainingState",
    "TrainingStatistics",
    "TrainingStrategy",
    "create_training_loop",
]


class TrainingLoop:
    """Trains an agent, and keeps everything that is worth keeping.

    It holds a plan (`rltrack.training.plan.TrainingPlan`). `run` makes a live training of it and carries that to its end::

        prepare: bind the agent, build the evaluation, open the run, restore its newest version if it has one
        until the budget is spent, or something asks to stop, do what is due:
            evaluate                                 (the best policy so far is kept as a version)
            checkpoint
            train a chunk: iterate to the next mark  (an iteration: collect, update; between two lies a boundary)
        evaluate, checkpoint, record the end, deliver to MLflow and TensorBoard

    Stop, pause, signals, limits and hooks' requests are looked at at boundaries only.

    Args:
        agent: An SB3, sb3-contrib or SBX model, or an `rltrack.AgentBase` (or an object with its four abstract methods).
        env: A Gymnasium environment, an SB3 ``VecEnv``, or an id; None for the one that the model has.
        settings: All settings as one value; or give them flat, as keywords (below).
        eval_env: Environment for evaluation, never the training one; omitted: built like the training environment.
        make_env: ``package.module:Name`` of the class or function that makes one environment (or ``{package.module:Name:
            {argument: value}}``), so that other processes can build it too; needed only where a message says so.
        hooks: Objects with some of the methods of `TrainingHook`; one, or several.
        callbacks: Callbacks of Stable-Baselines3, as ``learn`` takes them: one, a list, functions. One that returns False
            ends training at the next boundary. Their plain attributes are part of each checkpoint.
        reporter: Shows the progress; omitted: a bar where standard error is a terminal.
        name: The run's name under the root; omitted: new and unique.
        root: Folder of all runs; omitted: ``RLTRACK_ROOT``, or ``./mlruns``.
        resume: Whether an existing run of this name may be resumed.
        tracking: False: nothing is kept when the training has ended.
        seed: Seed of agent and environment; None leaves their own seeding alone.
        identity: What must be equal for a run to be resumed; omitted: the settings and the agent's description.
        config: The resolved configuration to store with the run; omitted: made from the settings.
        control: Requests to stop and pause, where they are shared with other code; omitted: a new one.
        options: Any of the settings, flat: ``strategy``, ``total_timesteps``, ``total_episodes``, ``max_seconds``,
            ``eval_freq``, ``eval_episodes``, ``checkpoint_freq``, ``checkpoint_seconds``, ``memory_limit_mb``,
            ``convergence_threshold``, ``enable_early_stopping``, ``patience``, ``min_improvement``,
            ``tensorboard_log_dir``, … (`rltrack.config.FLAT_KEYS` has them all).

    Attributes:
        plan: What the training is made from.
        live: The training itself; None before `run` or `prepare`.
        progress: Where it stands.
        statistics: What it amounts to.
        control: Requests to stop and pause.
        hooks: Called at each event.
        reporter: Shows the progress.

    Raises:
        ConfigurationError: If a setting is unknown, contradictory or out of range.
    """

    def __init__(
        self,
        agent: Any = None,
        env: Any = None,
        *,
        settings: LoopSettings | None = None,
        eval_env: Any = None,
        make_env: MakeEnv | None = None,
        hooks: Any = (),
        callbacks: Any = (),
        reporter: ProgressReporter | None = None,
        name: str | None = None,
        root: str | Path | None = None,
        resume: bool = False,
        tracking: bool = True,
        seed: int | None = None,
        identity: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        control: Control | None = None,
        **options: Any,
    ) -> None:
        if settings is not None and options:
            raise ConfigurationError(f"Give settings= or flat options, not both; got both, with {', '.join(options)}.")
        settings = LoopSettings.from_flat(options) if settings is None else settings
        if settings.training.needs_evaluation:
            settings = evaluating_settings(settings)
        training = settings.training
        self.progress = TrainingProgress()
        self.statistics = TrainingStatistics(convergence_threshold=training.convergence_threshold)
        self.control = control or Control()
        self.hooks = HookList()
        self.reporter = reporter or ProgressReporter()
        self.plan = TrainingPlan(
            settings=settings,
            strategy=make_strategy(training),
            progress=self.progress,
            statistics=self.statistics,
            control=self.control,
            hooks=self.hooks,
            reporter=self.reporter,
            agent=agent,
            env=env,
            eval_env=eval_env,
            make_env=make_env,
            callbacks=_all_of(callbacks),
            name=name,
            root=root,
            resume=resume,
            tracking=tracking,
            delivers=tracking,
            seed=seed,
            identity=identity,
            config=config,
        )
        self.live: LiveTraining | None = None
        if training.enable_early_stopping:
            self.add_hook(EarlyStoppingHook(training.patience, training.min_improvement))
        for hook in _all_of(hooks):
            self.add_hook(hook)

    @property
    def settings(self) -> LoopSettings:
        """All settings."""
        return self.plan.settings

    @property
    def strategy(self) -> Strategy:
        """Says where the marks are, and when the budget is spent."""
        return self.plan.strategy

    @property
    def metrics(self) -> MetricsTracker:
        """The run's whole history so far; read from its journal when asked."""
        return self.statistics.history

    @property
    def was_finished(self) -> bool:
        """Whether the run was finished before, so that nothing was trained."""
        return self.live is not None and self.live.was_finished

    @property
    def delivers(self) -> bool:
        """Whether the records go to MLflow and TensorBoard; to be set before `run`."""
        return self.plan.delivers

    @delivers.setter
    def delivers(self, delivers: bool) -> None:
        self.plan = dataclasses.replace(self.plan, delivers=delivers)

    def add_hook(self, hook: Any) -> None:
        """Add a hook: an object with some of the methods of `TrainingHook`.

        Raises:
            ConfigurationError: If it listens to no known moment, or with the wrong arguments.
        """
        self.hooks.add(hook)
        if self.live is None and self.hooks.need_evaluation and not self.settings.training.evaluates:
            self.plan = self.plan.with_evaluations()

    def stop(self, reason: str = "stop() was called") -> None:
        """Stop at the next boundary, with a checkpoint; from any thread, also before `run`."""
        self.control.stop(reason)

    def pause(self) -> None:
        """Pause at the next boundary; from any thread, also before `run`."""
        self.control.pause()

    def resume(self) -> None:
        """Continue after a pause; from any thread."""
        self.control.resume()

    def run(self, agent: Any = None, env: Any = None) -> TrainingStatistics:
        """Train until the budget is spent or something asks to stop.

        Args:
            agent: The agent, if the constructor was not given it.
            env: The environment, likewise.

        Returns:
            What the training amounted to. The run's journal and versions are complete; the delivery to MLflow and
            TensorBoard continues in a background process (`wait_for_tracking`).

        Raises:
            ConfigurationError: If agent, environment and settings do not fit together; nothing was started.
            TrainingDiverged: If a loss or a weight became NaN or infinite.
            MemoryLimitExceeded: If `memory_limit_mb` was exceeded; a checkpoint was written.
        """
        return self.prepare(self.plan.given(agent, env)).run()

    def prepare(self, plan: TrainingPlan | None = None) -> LiveTraining:
        """Prepare to train, for a caller that calls the methods of the live training itself.

        Args:
            plan: The loop's plan with agent and environment; omitted: the loop's plan.

        Raises:
            ConfigurationError: As `run`.
        """
        if self.live is not None:
            raise ConfigurationError("This TrainingLoop is in use or was used. Make a new one for another training.")
        self.plan = plan or self.plan
        with self.reporter.waiting():
            self.live = prepare(self.plan)
        return self.live

    def wait_for_tracking(self, timeout: float | None = None) -> bool:
        """Wait until everything is in MLflow and TensorBoard.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            Whether it is there now. If not, it can be delivered later: nothing is lost.
        """
        return True if self.live is None else self.live.wait_for_tracking(timeout)

    def close(self) -> None:
        """Release everything, where `prepare` was called and not `run`; harmless if called twice."""
        if self.live is not None:
            self.live.close()


def create_training_loop(
    agent: Any, env: Any, config: Mapping[str, Any] | LoopSettings, **options: Any
) -> TrainingLoop:
    """Build a TrainingLoop from a flat dictionary, such as ``{"strategy": "adaptive", "total_timesteps": 100_000}``.

    Args:
        agent: As for `TrainingLoop`.
        env: As for `TrainingLoop`.
        config: Flat settings, or all settings as one value.
        options: Further keywords of `TrainingLoop`, such as ``name`` or ``hooks``; they win over `config`.

    Raises:
        ConfigurationError: If a setting is unknown (the nearest right one is named), contradictory or out of range.
    """
    if isinstance(config, LoopSettings):
        return TrainingLoop(agent, env, settings=config, **options)
    if not isinstance(config, Mapping):
        raise ConfigurationError(
            f"config is a {type(config).__name__}; pass a dictionary such as {{'total_timesteps': 10_000}}."
        )
    return TrainingLoop(agent, env, **{**config, **options})


def _all_of(given: Any) -> tuple[Any, ...]:
    """Return one object, several or None as a tuple."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Iterable) else (given,)
