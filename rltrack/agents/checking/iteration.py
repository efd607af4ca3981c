"""A few iterations of an agent, and whether they report what they did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from rltrack.agents import as_agent
from rltrack.agents.base import AgentBase
from rltrack.agents.checking.report import CheckAborted, Report
from rltrack.agents.environments import make_gym_env
from rltrack.agents.gym_types import Env, Wrapper
from rltrack.agents.protocol import EpisodeInfo, IterationStats, StepInfo
from rltrack.agents.random_state import capture_random
from rltrack.cleanup import close_all

TOTAL_ITERATIONS = 100
"""The budget that the schedule follows."""

Trace = list[dict[str, object]]
"""What each iteration reported, to compare two trainings."""


class CountingEnv(Wrapper):
    """Counts the steps that an environment really takes."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step and count."""
        self.steps += 1
        return self.env.step(action)


class Training:
    """An agent in its environment, iteration by iteration; a context in which the agent is bound.

    Args:
        agent: As it was given.
        env: As it was given.
        seed: For `bind`.
        report: Where findings go.
    """

    def __init__(self, agent: Any, env: Any, seed: int, report: Report) -> None:
        self.agent: AgentBase = as_agent(agent)
        self.env = env
        self.observer = CheckingObserver()
        self.description: Mapping[str, object] = {}
        self.streams_before: Mapping[str, object] = {}
        """The process-wide random streams before `bind`."""
        self._seed, self._report = seed, report
        self.iterations = 0
        """Iterations so far."""

    def __enter__(self) -> Training:
        """Bind the agent."""
        agent, report = self.agent, self._report
        self.iterations, self.observer = 0, CheckingObserver()
        if not agent.implements("make_evaluation_env"):
            env = make_gym_env(self.env) if isinstance(self.env, str) else self.env
            self.env = CountingEnv(env) if isinstance(env, gym.Env) and not isinstance(env, CountingEnv) else env
        self.streams_before = capture_random()
        report.calling("set_log_interval(1)", lambda: agent.set_log_interval(1))
        report.calling("bind(env, seed)", lambda: agent.bind(self.env, self._seed))
        description: object = report.calling("describe()", agent.describe)
        if not isinstance(description, Mapping) or not isinstance(description.get("algorithm"), str):
            report.error(
                f"describe() returns {str(description)[:100]!r}", 'Return a dictionary with "algorithm" as text'
            )
            raise CheckAborted
        self.description = description
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Release the agent and close its environment."""
        if kind is None:
            self._report.calling("release()", self.agent.release)
        if isinstance(self.env, CountingEnv):
            close_all(self.env)

    def set_schedule(self) -> None:
        """Give the agent the schedule at this boundary."""
        remaining = 1.0 - self.iterations / TOTAL_ITERATIONS
        self._report.calling(f"set_schedule({remaining})", lambda: self.agent.set_schedule(remaining))

    def iterate(self, iterations: int) -> Trace:
        """Run some iterations and check what each of them reports."""
        trace: Trace = []
        for _ in range(iterations):
            observer, report = self.observer, self._report
            before, real_before = observer.env_steps, self._real_steps
            observer.episodes = []
            self.set_schedule()
            stats = report.calling("advance(observer)", lambda: self.agent.advance(observer))  # noqa: B023
            self.iterations += 1
            self._check(stats, observer.env_steps - before, self._real_steps - real_before)
            trace.append(
                {
                    "env_steps": stats.env_steps,
                    "metrics": [[step, dict(values)] for step, values in stats.metrics],
                    "losses": dict(stats.losses),
                    "episodes": [[one.episode_return, one.length, one.env_steps] for one in observer.episodes],
                }
            )
        return trace

    @property
    def _real_steps(self) -> int:
        return self.env.steps if isinstance(self.env, CountingEnv) else 0

    def _check(self, stats: object, observed: int, real: int) -> None:
        report = self._report
        if not isinstance(stats, IterationStats):
            report.error(
                f"advance() returns a {type(stats).__name__}",
                "Return an rltrack.agents.IterationStats(env_steps, metrics)",
            )
            raise CheckAborted
        if isinstance(self.env, CountingEnv) and observed != real:
            report.error(
                f"the observer was called with {observed} env steps in one iteration, and the environment took {real}",
                "Call observer.on_step(n, step) once after each step of the environments, with n parallel environments",
            )
            raise CheckAborted  # the observer's other values follow from it
        self._report.findings += [one for one in self.observer.report.findings if one not in self._report.findings]
        if stats.env_steps != observed:
            report.error(
                f"advance() reports {stats.env_steps} env steps in IterationStats, and {observed} to the observer",
                "Make both the env steps of this iteration, over all parallel environments",
            )
        if observed <= 0:
            report.error(
                "advance() took no env step", "Collect experience in every iteration, or the training never ends"
            )
            raise CheckAborted
        try:
            metrics = [(int(step), dict(values)) for step, values in stats.metrics]
        except (TypeError, ValueError):
            report.error(
                f"IterationStats.metrics is {str(stats.metrics)[:100]}",
                "Make it a list of pairs: env steps of the run, and a dictionary of numbers",
            )
            raise CheckAborted from None
        for step, values in metrics:
            if not 0 <= step <= self.observer.env_steps:
                report.error(
                    f"a metric is reported at {step} env steps, and the run has {self.observer.env_steps}",
                    "The first of each pair in IterationStats.metrics is the env steps of the whole run",
                )
            for key, value in values.items():
                _check_number(report, f"the metric {key!r}", value)
        for key, value in stats.losses.items():
            if _check_number(report, f"the loss {key!r}", value) and not math.isfinite(value):
                report.error(f"the loss {key!r} is {value}", "A loss that is not finite ends a training")


class CheckingObserver:
    """Counts what an agent reports inside an iteration, and checks it."""

    wants_steps = True

    def __init__(self) -> None:
        self.env_steps = 0
        self.episodes: list[EpisodeInfo] = []
        self.report = Report()
        """What was wrong, until the iteration has ended and its steps are compared."""

    def on_step(self, env_steps: int, step: StepInfo | None) -> None:
        """Check one step of the environments."""
        self.env_steps += env_steps
        if step is None:
            self.report.warning(
                "the observer gets no StepInfo although observer.wants_steps is True",
                "Pass one to observer.on_step, or hooks with on_step get None",
            )
            return
        if step.env_steps != self.env_steps:
            self.report.error(
                f"a StepInfo says {step.env_steps} env steps where the observer has counted {self.env_steps}",
                "StepInfo.env_steps is the env steps of the run, this step included",
            )
        for name in ("rewards", "dones"):
            if np.shape(getattr(step, name)) != (env_steps,):
                self.report.error(
                    f"StepInfo.{name} has the shape {np.shape(getattr(step, name))} in a step of {env_steps} environment(s)",
                    f"Give it the shape ({env_steps},)",
                )

    def on_episode_end(self, episode: object) -> None:
        """Check one finished episode."""
        if not isinstance(episode, EpisodeInfo):
            self.report.error(
                f"the observer gets a {type(episode).__name__} at the end of an episode",
                "Pass an rltrack.agents.EpisodeInfo(episode_return, length, env_steps)",
            )
            return
        self.episodes.append(episode)
        if episode.env_steps != self.env_steps:
            self.report.error(
                f"an EpisodeInfo says {episode.env_steps} env steps where the observer has counted {self.env_steps}",
                "EpisodeInfo.env_steps is the env steps of the run; call on_episode_end after on_step of its last step",
            )


def _check_number(report: Report, what: str, value: object) -> bool:
    if isinstance(value, int | float | np.number) or (isinstance(value, np.ndarray) and value.size == 1):
        return True
    report.error(f"{what} is a {type(value).__name__}", "Make it a number: float(value)")
    return False
