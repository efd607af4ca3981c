"""The data that training loop and agent exchange, and the protocols of what they talk to.

One iteration is "collect experience, then update". Between two iterations lies a *boundary*: no step in flight, update
done. Everything else (evaluation, checkpoint, pause, stop) happens there. `rltrack.agents.AgentBase` is the interface of agents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from rltrack.checkpoints.encoding import State as State
from rltrack.evaluation.results import EpisodeInfo as EpisodeInfo
from rltrack.evaluation.results import Evaluation as Evaluation

MakeEnv = str | Mapping[str, Any] | Callable[..., Any]
"""What makes one environment: ``package.module:Name``, ``{package.module:Name: {argument: value}}``, or the class or function."""

POLICY_PARTS = ("policy", "normalization")
"""What it takes to act."""
LEARNER_PARTS = ("policy", "optimizer", "normalization")
"""What it takes to continue learning from an earlier policy, with the current counters and random streams."""


Observations: TypeAlias = np.ndarray | dict[str, np.ndarray] | tuple[np.ndarray, ...]
"""Observations of all parallel environments, first axis ``(n_envs,)``; by key for Dict spaces, SB3's ``VecEnvObs``."""


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One step of all parallel environments, as the agent saw it.

    Attributes:
        env_steps: Env steps of the run so far, this step included.
        observations: Observations after the step, first axis ``(n_envs,)``.
        actions: Actions taken, first axis ``(n_envs,)``.
        rewards: Rewards as the agent gets them (normalised if it normalises), shape ``(n_envs,)``.
        dones: Whether the episode ended, shape ``(n_envs,)``.
        infos: One dictionary per environment.
    """

    env_steps: int
    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    infos: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CallbackEvaluation:
    """An evaluation that a user's callback made inside an iteration.

    Attributes:
        evaluation: Its results, with the env steps at which it was made.
        policy: `POLICY_PARTS` of the state as they were then; None where they cannot be taken.
        number: Which of the evaluating callbacks made it, from 1.
    """

    evaluation: Evaluation
    policy: State | None = None
    number: int = 1


@dataclass(frozen=True, slots=True)
class IterationStats:
    """What one iteration did.

    Attributes:
        env_steps: Env steps taken in it, over all parallel environments.
        metrics: ``(env steps of the run, {key: value})`` for each time the agent logged.
        losses: Values that must be finite; one that is not stops the run.
        excluded: For each of `metrics`, in order, the keys that are kept from a sink (``mlflow``, ``tensorboard``).
        stop_reason: Why training should end at this boundary; None if it should not.
        evaluations: What callbacks evaluated in it; the run's evaluations, where rltrack makes none.
    """

    env_steps: int
    metrics: Sequence[tuple[int, Mapping[str, float]]] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    excluded: Sequence[Mapping[str, Sequence[str]]] = ()
    stop_reason: str | None = None
    evaluations: Sequence[CallbackEvaluation] = ()


@dataclass(slots=True)
class Reconstruction:
    """What a configuration can say about a model and its environment.

    Attributes:
        agent: The section ``agent``.
        environment: The section ``environment``; without ``id`` if the environment is unknown.
        missing: What it takes to act and could not be found out, a line each, with what to do.
        script_only: What only training needs, and only the script has, a line each.
    """

    agent: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    script_only: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether agent and environment can be built from it, to act."""
        return not self.missing and "id" in self.environment


class Observer(Protocol):
    """Receives what happens inside an iteration."""

    wants_steps: bool
    """Whether single steps are used; if not, pass ``None`` as `step` and save the work."""

    def on_step(self, env_steps: int, step: StepInfo | None) -> None:
        """Call after each step of the environments, with the number of env steps just taken."""

    def on_episode_end(self, episode: EpisodeInfo) -> None:
        """Call for each finished episode, after its step."""


class EvaluationEnvironment(Protocol):
    """Vectorised environments in which an agent is judged; they restart by themselves at the end of an episode.

    An optional ``limit_episodes(steps) -> bool`` is called before ``start``: end each episode after so many env steps, None for
    as many as the environment sees fit; the last info of an episode that was ended so has ``rltrack.episode_cut``. Without it,
    or where it returns False, an episode that is too long is counted as it is, and no other follows in its environment.
    """

    n_envs: int
    reports_episodes: bool
    """Whether infos carry ``episode`` with the raw return ``r`` and length ``l`` at the end of a real episode."""

    def start(self, seeds: Sequence[Sequence[int]]) -> Observations:
        """Begin; the i-th environment plays one episode for each of its seeds. Returns observations."""

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, Sequence[Mapping[str, Any]]]:
        """Return observations, rewards (raw), dones and infos; first axis ``(n_envs,)``."""

    def prediction_inputs(self) -> dict[str, object]:
        """Return further arguments for ``predict``, such as action masks."""

    def close(self) -> None:
        """Release it."""


class Acting(Protocol):
    """What can play: an agent, or a stored policy."""

    def predict(
        self,
        observation: Observations,
        *,
        state: object = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        **inputs: object,
    ) -> tuple[np.ndarray, object]:
        """Return actions (first axis ``(n_envs,)``) and the policy's next recurrent state.

        Args:
            observation: Observations as the evaluation environment gives them, first axis ``(n_envs,)``.
            state: What the previous call returned; None at the start.
            episode_start: Whether an episode begins with this observation, bool, shape ``(n_envs,)``.
            deterministic: Act by the mode of the policy rather than by a sample.
            inputs: What the evaluation environment adds, such as action masks.
        """


class Agent(Acting, Protocol):
    """What an agent must have that does not inherit `rltrack.agents.AgentBase`; it may have any of that class's methods besides."""

    def bind(self, env: Any, seed: int | None) -> None:
        """Prepare to train in `env` from zero env steps."""

    def advance(self, observer: Observer) -> IterationStats:
        """Collect experience and update, once."""

    def set_schedule(self, remaining: float) -> None:
        """Receive the remaining fraction of the budget."""
