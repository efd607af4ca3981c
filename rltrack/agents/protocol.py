"""What an agent must offer to be trained, and what it may offer on top.

A custom agent implements ``bind``, ``advance``, ``predict`` and ``set_schedule``. Everything else is optional and looked
up by name: an agent without ``capture``/``restore`` trains as well, but its run cannot go on after a kill.

One iteration is "collect experience, then update". Between two iterations lies a *boundary*: no step in flight, update
done. Everything else (evaluation, checkpoint, pause, stop) happens there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rltrack.checkpoints.encoding import State as State

POLICY_PARTS = ("policy", "normalization")
"""What it takes to act."""
LEARNER_PARTS = ("policy", "optimizer", "normalization")
"""What it takes to go on learning from an earlier policy, with counters and random streams as they are now."""


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
    observations: Any
    actions: Any
    rewards: np.ndarray
    dones: np.ndarray
    infos: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """One finished training episode.

    Attributes:
        episode_return: Undiscounted sum of raw rewards.
        length: Env steps.
        env_steps: Env steps of the run when it ended.
        env_index: Which of the parallel environments it ran in.
    """

    episode_return: float
    length: int
    env_steps: int
    env_index: int = 0


@dataclass(frozen=True, slots=True)
class IterationStats:
    """What one iteration did.

    Attributes:
        env_steps: Env steps taken in it, over all parallel environments.
        metrics: ``(env steps of the run, {key: value})`` for each time the agent logged.
        losses: Values that must be finite; one that is not stops the run.
        excluded: For each of `metrics`, in order, the keys that are kept from a sink (``mlflow``, ``tensorboard``).
    """

    env_steps: int
    metrics: Sequence[tuple[int, Mapping[str, float]]] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    excluded: Sequence[Mapping[str, Sequence[str]]] = ()


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
    """Hears what happens inside an iteration."""

    wants_steps: bool
    """Whether anybody listens to single steps; if not, pass ``None`` as `step` and save the work."""

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

    def start(self, seeds: Sequence[Sequence[int]]) -> Any:
        """Begin; the i-th environment plays one episode for each of its seeds. Returns observations."""

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, Sequence[Mapping[str, Any]]]:
        """Return observations, rewards (raw), dones and infos; first axis ``(n_envs,)``."""

    def prediction_inputs(self) -> dict[str, Any]:
        """Return further arguments for ``predict``, such as action masks."""

    def close(self) -> None:
        """Release it."""


class Acting(Protocol):
    """What can play: an agent, or a stored policy."""

    def predict(
        self,
        observation: Any,
        *,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        **inputs: Any,
    ) -> tuple[Any, Any]:
        """Return actions (first axis ``(n_envs,)``) and the policy's next recurrent state.

        Args:
            observation: Observations as the evaluation environment gives them, first axis ``(n_envs,)``.
            state: What the previous call returned; None at the start.
            episode_start: Whether an episode begins with this observation, bool, shape ``(n_envs,)``.
            deterministic: Act by the mode of the policy rather than by a sample.
            inputs: What the evaluation environment adds, such as action masks.
        """


@runtime_checkable
class Agent(Acting, Protocol):
    """What an agent must offer.

    Optional methods:

    - ``capture() -> State`` and ``restore(state)``: the complete state at a boundary. ``restore`` gets the parts to put
      back, and leaves the others as they are.
    - ``capture_parts(parts) -> State``: some parts only, where that is cheaper than all of them.
    - ``make_evaluation_env(env, n_envs) -> EvaluationEnvironment``: for agents whose environments need preparation.
    - ``scale_learning_rate(factor)``: multiply the scheduled learning rate from now on (the ADAPTIVE strategy).
    - ``update_per_episode() -> str | None``: from now on one iteration is one episode (EPISODIC); a text says why not.
    - ``collects_whole_episodes``: whether an iteration ends with an episode only, so that it may have no end.
    - ``set_log_interval(n)``: log every n iterations or episodes.
    - ``why_not_exact() -> str | None``: why a resume would differ from a run that was never interrupted; without this
      method a resume is labelled as not exact.
    - ``is_seeded() -> bool``: whether it would begin alike if it began again.
    - ``numerics() -> dict``: what decides about bits beside versions; compared on resume.
    - ``allow_probe(allowed)``: before ``bind``, whether scratch environments may be built.
    - ``cut_environments(wanted)`` and ``cut()``: before ``bind``, whether environments take part by cuts; and one such cut.
    - ``describe_choices() -> dict``: by what was chosen: ``chosen`` and ``reason``, for the record.
    - ``describe_resume() -> dict``: ``tier`` and ``reason``: how environments take part in a resume, for the record.
    - ``describe() -> dict``: algorithm, hyperparameters, environment and spaces, for the record.
    - ``describe_policy() -> dict``: how the policy is built from its weights, so that it can be stored as a model
      (`rltrack.agents.policy_description`), or ``reason``: why it cannot.
    - ``release()``: put back what ``bind`` changed outside the agent.
    """

    def bind(self, env: Any, seed: int | None) -> None:
        """Get ready to train in `env` from zero env steps; `seed` None leaves the agent's own seeding alone."""

    def advance(self, observer: Observer) -> IterationStats:
        """Collect experience and update, once."""

    def set_schedule(self, remaining: float) -> None:
        """Hear how much of the whole budget is left: 1 at the start, 0 when spent.

        As in Stable-Baselines3 it may fall slightly below 0 when the last iteration overshoots the budget.
        """


REQUIRED_METHODS = ("bind", "advance", "predict", "set_schedule")
