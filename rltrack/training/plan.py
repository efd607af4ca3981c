"""A training before it begins: everything that it is made from, as one frozen value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrack.training.strategies import Strategy, make_strategy

if TYPE_CHECKING:
    from rltrack.agents.protocol import MakeEnv, State
    from rltrack.config import LoopSettings
    from rltrack.training.control import Control
    from rltrack.training.hooks import HookList
    from rltrack.training.progress import TrainingProgress, TrainingStatistics
    from rltrack.training.reporter import ProgressReporter

DEFAULT_EVALUATIONS = 20
"""Evaluations over the budget, where something needs them and no frequency is given."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingPlan:
    """What a training is made from; `rltrack.training.prepare.prepare` makes it.

    What others watch and talk to while it is trained (progress, statistics, control, hooks, reporter) belongs to the plan, so
    that it is known before training begins.

    Attributes:
        settings: Budget, evaluation, checkpoints and tracking.
        strategy: Says where the marks are, and when the budget is spent.
        progress: Where the training stands.
        statistics: What it amounts to.
        control: Requests to stop and pause.
        hooks: Called at each event.
        reporter: Shows the progress.
        agent: What is trained: an SB3 model or an own agent; None until it is known.
        env: The environment; None for the one that the model has.
        eval_env: Environment for evaluation; None to build it like `env`.
        callbacks: Callbacks of Stable-Baselines3.
        make_env: ``package.module:Name`` of what makes one environment, where the environment itself does not say.
        name: The run's name under the root; None for a new unique one.
        root: Folder of all runs; None for the default.
        resume: Whether an existing run of this name may be resumed.
        tracking: False: nothing is kept when the training has ended.
        delivers: Whether the records go to MLflow and TensorBoard.
        seed: Seed of agent and environment; None leaves their own seeding alone.
            identity: What must be equal for a run to be resumed; None for the settings and the agent's description.
        accepted_identities: Other identities that a resumed run may have.
        config: The resolved configuration to store with the run; None to make it from the settings.
        start_from: Parts of another run's state to begin with; only a run without a version of its own takes them.
    """

    settings: LoopSettings
    strategy: Strategy
    progress: TrainingProgress
    statistics: TrainingStatistics
    control: Control
    hooks: HookList
    reporter: ProgressReporter
    agent: Any = None
    env: Any = None
    eval_env: Any = None
    make_env: MakeEnv | None = None
    callbacks: tuple[Any, ...] = ()
    name: str | None = None
    root: str | Path | None = None
    resume: bool = False
    tracking: bool = True
    delivers: bool = True
    seed: int | None = None
    identity: Mapping[str, Any] | None = None
    accepted_identities: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] | None = None
    start_from: State | None = None

    def given(self, agent: Any, env: Any) -> TrainingPlan:
        """Return the plan with this agent and environment; None leaves the plan's own."""
        return dataclasses.replace(
            self, agent=self.agent if agent is None else agent, env=self.env if env is None else env
        )

    def with_evaluations(self) -> TrainingPlan:
        """Return the plan with evaluations, as often as the settings say, or by default."""
        settings = evaluating_settings(self.settings)
        return dataclasses.replace(self, settings=settings, strategy=make_strategy(settings.training))


def evaluating_settings(settings: LoopSettings) -> LoopSettings:
    """Return the settings with `DEFAULT_EVALUATIONS`, unless they name a frequency of their own."""
    return settings.model_copy(update={"training": settings.training.with_evaluations(DEFAULT_EVALUATIONS)})
