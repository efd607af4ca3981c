"""AgentBase: the interface between the training loop and an agent, with a default for everything that is optional."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from rltrack.agents.protocol import (
    Agent,
    EvaluationEnvironment,
    IterationStats,
    MakeEnv,
    Observations,
    Observer,
    Reconstruction,
    State,
)
from rltrack.errors import ConfigurationError, NotCapturable


class AgentBase(ABC):
    """Base class of agents. A subclass implements `bind`, `advance`, `predict` and `set_schedule`, and overrides what it needs.

    Methods are called in this order::

        set_log_interval, cut_environments, allow_probe, take_make_env, take_callbacks
        bind, update_per_episode (EPISODIC), make_evaluation_env, describe, describe_configuration, describe_policy
        restore (a resume), scale_learning_rate (a resume of ADAPTIVE)
        accelerate
        until the budget is spent:
            set_schedule and the observer's calls inside advance
            predict (evaluations), capture or capture_parts (versions), cut
        end_training, release

    `rltrack.check_agent(agent, env)` reports what is wrong with an implementation.

    Attributes:
        n_envs: Number of parallel training environments.
    """

    n_envs: int = 1

    @abstractmethod
    def bind(self, env: Any, seed: int | None) -> None:
        """Prepare to train in `env` from zero env steps.

        Args:
            env: A Gymnasium environment, or whatever was passed to the training; as it was passed (an id, None) if the agent has
                `make_evaluation_env`.
            seed: Seed of agent and environment; None leaves the agent's own seeding unchanged.
        """

    @abstractmethod
    def advance(self, observer: Observer) -> IterationStats:
        """Run one iteration: collect experience and update.

        Args:
            observer: Call ``observer.on_step(n, step)`` after each step of the environments with the number of env steps just
                taken, and ``observer.on_episode_end(episode)`` after the step that ends an episode.

        Returns:
            Env steps of the iteration, logged metrics and losses.
        """

    @abstractmethod
    def predict(
        self,
        observation: Observations,
        *,
        state: object = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        **inputs: object,
    ) -> tuple[np.ndarray, object]:
        """Return actions, first axis ``(n_envs,)``, and the policy's next recurrent state; see `Acting.predict`."""

    @abstractmethod
    def set_schedule(self, remaining: float) -> None:
        """Receive the remaining fraction of the budget: 1 at the start, 0 at the end.

        As in Stable-Baselines3 it may fall slightly below 0 when the last iteration overshoots the budget.
        """

    # ---- state: without capture() and restore() there are no checkpoints ----

    def capture(self) -> State:
        """Return the complete state at a boundary, by part (`rltrack.agents.State`).

        Raises:
            NotCapturable: If the agent has no `capture`.
        """
        raise NotCapturable(
            f"{self.class_name} has no capture(). Implement capture() and restore() to get checkpoints."
        )

    def capture_parts(self, parts: Collection[str]) -> State:
        """Return some parts of the state; override it where that is cheaper than capturing everything."""
        return {part: value for part, value in self.capture().items() if part in parts}

    def restore(self, state: State) -> None:
        """Overwrite the given parts of the state, and leave the other parts unchanged.

        Raises:
            NotCapturable: If the agent has no `restore`.
            ResumeMismatch: If environments could not be brought back; training resumes with new episodes.
        """
        raise NotCapturable(
            f"{self.class_name} has no restore(). Implement capture() and restore() to get checkpoints."
        )

    def why_not_exact(self) -> str | None:
        """Return why a resumed run would differ from an uninterrupted one; None if it would be bit-identical."""
        return f"{self.class_name} does not say that its state is complete (why_not_exact)"

    def is_seeded(self) -> bool:
        """Return whether a restart from zero env steps would give the same training."""
        return False

    def numerics(self) -> Mapping[str, object]:
        """Return what decides numerical results besides package versions; a resume compares it."""
        return {}

    # ---- environments ----

    def make_evaluation_env(self, env: Any, n_envs: int) -> EvaluationEnvironment | None:
        """Build the evaluation environments.

        Args:
            env: The environment that was passed for evaluation; None to build it like the training environment.
            n_envs: Number of parallel environments.

        Returns:
            The environments; None for unmodified Gymnasium environments, which rltrack builds.
        """
        return None

    def allow_probe(self, allowed: bool) -> None:  # noqa: B027
        """Allow or forbid scratch copies of the environment in `bind`; called before it."""

    def take_make_env(self, make_env: MakeEnv | None) -> None:  # noqa: B027
        """Receive what makes one environment: ``package.module:Name``, alone or with arguments; called before `bind`."""

    def take_callbacks(self, callbacks: Sequence[Any], total_timesteps: int | None) -> None:
        """Receive callbacks of Stable-Baselines3 and the budget in env steps, if it has one; called before `bind`.

        Raises:
            ConfigurationError: If there are some and the agent calls none.
        """
        if callbacks:
            raise ConfigurationError(f"callbacks= are for Stable-Baselines3's models; {self.class_name} takes hooks=.")

    def end_training(self) -> None:  # noqa: B027
        """Called when training has ended without an error, before `release`."""

    def cut_environments(self, wanted: bool) -> None:
        """Turn cuts on or off (``checkpoints.cut_freq``); called before `bind`.

        Raises:
            ConfigurationError: If cuts are wanted and the agent has none.
        """
        if wanted:
            raise ConfigurationError(
                f"checkpoints.cut_freq needs an agent that can cut its environments; {self.class_name} has no "
                "cut_environments()."
            )

    def cut(self) -> None:
        """End all episodes at this boundary and reset the environments with seeds derived from the env steps."""
        raise NotImplementedError(f"{self.class_name} has cut_environments() and no cut().")

    def describe_resume(self) -> Mapping[str, Any] | None:
        """Return ``tier`` and ``reason``: how environments take part in a resume; None if unknown."""
        return None

    # ---- iterations ----

    @property
    def collects_whole_episodes(self) -> bool:
        """Whether an iteration ends only when an episode ends, so that it may never end."""
        return False

    def update_per_episode(self) -> str | None:
        """Make one iteration one episode (the EPISODIC strategy); return why that is impossible, or None."""
        return None

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the scheduled learning rate by `factor`, replacing an earlier factor (the ADAPTIVE strategy)."""
        raise NotImplementedError(f"{self.class_name} has no scale_learning_rate().")

    def set_log_interval(self, interval: int) -> None:  # noqa: B027
        """Log metrics every `interval` iterations or episodes; called before `bind`."""

    # ---- the run's record ----

    def describe(self) -> Mapping[str, Any]:
        """Return algorithm, hyperparameters, environment and spaces as plain data; a resume must have the same."""
        return {"algorithm": self.class_name}

    def describe_configuration(self) -> Reconstruction | None:
        """Return the sections of a configuration that builds agent and environment again; None if no configuration can."""
        return None

    def describe_policy(self) -> Mapping[str, Any] | None:
        """Return how the policy is built from its weights (`rltrack.agents.policy_description`), so that it can be promoted.

        ``reason`` says why it cannot be; None if the agent has no such description.
        """
        return None

    def accelerate(self) -> None:  # noqa: B027
        """Train faster from now on, with the same bits, until `release`; after `restore`, before the first iteration."""

    def describe_choices(self) -> Mapping[str, Mapping[str, Any]]:
        """Return each setting that was chosen automatically: ``{setting: {"chosen": value, "reason": text}}``."""
        return {}

    def release(self) -> None:  # noqa: B027
        """Undo what `bind` changed outside the agent."""

    # ---- what is implemented ----

    @property
    def class_name(self) -> str:
        """Name of the agent's class, for messages."""
        return type(self).__name__

    def implements(self, method: str) -> bool:
        """Return whether the agent has its own version of a method of this class."""
        return method in vars(self) or getattr(type(self), method) is not getattr(AgentBase, method)

    @property
    def is_capturable(self) -> bool:
        """Whether there can be checkpoints: `capture` and `restore` are implemented."""
        return self.implements("capture") and self.implements("restore")


REQUIRED_METHODS = tuple(sorted(AgentBase.__abstractmethods__))
OPTIONAL_METHODS = tuple(
    name
    for name, member in vars(AgentBase).items()
    if callable(member) and not name.startswith("_") and name not in (*REQUIRED_METHODS, "implements")
)


class ProtocolAgent(AgentBase):
    """An agent that is no `AgentBase`: its methods, and the defaults for those that it lacks.

    Args:
        agent: An object with the methods of the `Agent` protocol and any of the optional ones.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        for name in OPTIONAL_METHODS:
            method = getattr(agent, name, None)
            if callable(method):
                setattr(self, name, method)

    def bind(self, env: Any, seed: int | None) -> None:
        """Call the agent's `bind`."""
        self.n_envs = int(getattr(env, "num_envs", 1))
        self.agent.bind(env, seed)

    def advance(self, observer: Observer) -> IterationStats:
        """Call the agent's `advance`."""
        return self.agent.advance(observer)

    def predict(self, observation: Observations, **inputs: Any) -> tuple[np.ndarray, object]:
        """Call the agent's `predict`."""
        return self.agent.predict(observation, **inputs)

    def set_schedule(self, remaining: float) -> None:
        """Call the agent's `set_schedule`."""
        self.agent.set_schedule(remaining)

    @property
    def collects_whole_episodes(self) -> bool:
        """The agent's attribute; False without it."""
        return bool(getattr(self.agent, "collects_whole_episodes", False))

    @property
    def class_name(self) -> str:
        """Name of the agent's own class."""
        return type(self.agent).__name__
