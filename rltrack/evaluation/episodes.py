"""Plays an agent's policy on fixed seeds, and holds the results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rltrack.agents.environments import CUT, UNLIMITED_EPISODE_STEPS
from rltrack.agents.protocol import Acting, EvaluationEnvironment
from rltrack.agents.random_state import untouched_random_streams
from rltrack.episode_limits import SECONDS_WITHOUT_END, EpisodeLimits
from rltrack.evaluation.results import Evaluation as Evaluation
from rltrack.journal.values import columns_of, episode_values

EVALUATION_STREAM = 0xE7A1
"""Separates the seeds of evaluation from those of training."""


OnProgress = Callable[[int, int], None]
"""Called with the progress of an evaluation: finished episodes, and steps so far of each environment."""


class EvaluationInterrupted(Exception):
    """A stop was requested during an evaluation; nothing was recorded."""


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Return the seeds of an evaluation's episodes: the same for all evaluations of a run, none used in training."""
    sequence = np.random.SeedSequence([seed, EVALUATION_STREAM])
    return [int(value) for value in sequence.generate_state(episodes, dtype=np.uint32) >> 1]


def play_episodes(
    agent: Acting,
    env: EvaluationEnvironment,
    seeds: Sequence[int],
    *,
    env_steps: int = 0,
    deterministic: bool = True,
    should_abort: Callable[[], bool] = lambda: False,
    limits: EpisodeLimits | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Play one episode for each seed.

    Episodes are assigned evenly to the parallel environments beforehand, so that short episodes are not over-represented.
    The process-wide random streams are restored afterwards.

    Args:
        agent: The agent or stored policy that plays.
        env: The environments; returns are raw.
        seeds: One per episode.
        env_steps: Env steps of training, for the record.
        deterministic: Act by the policy's mode.
        should_abort: Called after each step; True ends the evaluation without a result.
        limits: Limits of episodes and of the evaluation; None for `EpisodeLimits()`.
        on_progress: Called after each step with the numbers of finished episodes and of env steps.

    Returns:
        Returns and lengths in the order of `seeds`; without episodes that had not started when the time limit was reached.

    Raises:
        EvaluationInterrupted: If `should_abort` returned True.
        ValueError: If `seeds` is empty.
    """
    if not seeds:
        raise ValueError("There are no seeds; give one for each episode.")
    begun = time.perf_counter()
    with untouched_random_streams():
        results, cut, infos = _play(
            agent, env, seeds, deterministic, should_abort, limits or EpisodeLimits(), on_progress
        )
    return Evaluation.of(
        env_steps,
        [episode_return for episode_return, _ in results],
        [length for _, length in results],
        seconds=time.perf_counter() - begun,
        deterministic=deterministic,
        cut=cut,
        infos=columns_of(infos),
    )


@dataclass(frozen=True, slots=True)
class Evaluator:
    """An agent with its evaluation environments and episode seeds.

    Attributes:
        agent: The agent whose policy plays.
        env: The environments; returns are raw.
        seeds: One per episode, the same for each evaluation of a run.
        deterministic: Act by the policy's mode.
        limits: Limits of episodes and of the evaluation.
    """

    agent: Acting
    env: EvaluationEnvironment
    seeds: Sequence[int]
    deterministic: bool = True
    limits: EpisodeLimits | None = None

    def evaluate(
        self, env_steps: int, should_abort: Callable[[], bool], on_progress: OnProgress | None = None
    ) -> Evaluation:
        """Play the episodes; see `play_episodes`."""
        return play_episodes(
            self.agent,
            self.env,
            self.seeds,
            env_steps=env_steps,
            deterministic=self.deterministic,
            should_abort=should_abort,
            limits=self.limits,
            on_progress=on_progress,
        )


def _play(
    agent: Acting,
    env: EvaluationEnvironment,
    seeds: Sequence[int],
    deterministic: bool,
    should_abort: Callable[[], bool],
    limits: EpisodeLimits,
    on_progress: OnProgress | None,
) -> tuple[list[tuple[float, int]], int, list[dict[str, float]]]:
    """Return the return and length of each episode, how many were cut, and what the last info of each says."""
    n_envs = env.n_envs
    dealt: list[list[int]] = [list(range(index, len(seeds), n_envs)) for index in range(n_envs)]
    results: dict[int, tuple[float, int]] = {}
    last: dict[int, dict[str, float]] = {}
    played = [0] * n_envs
    returns, lengths = np.zeros(n_envs), np.zeros(n_envs, dtype=int)
    cut, steps, begun = 0, 0, time.monotonic()
    limit = getattr(env, "limit_episodes", None)
    ends_episodes = callable(limit) and bool(limit(limits.max_steps))
    # an environment without assigned episodes plays on any seed; its results are ignored
    observation = env.start([[seeds[index] for index in own] or [seeds[0]] for own in dealt])
    state: Any = None
    starts = np.ones(n_envs, dtype=bool)
    while len(results) < sum(len(own) for own in dealt):
        actions, state = agent.predict(
            observation, state=state, episode_start=starts, deterministic=deterministic, **env.prediction_inputs()
        )
        observation, rewards, dones, infos = env.step(actions)
        returns += rewards
        lengths += 1
        steps += 1
        for index in map(int, np.flatnonzero(dones)):
            finished: tuple[float, int] | None = float(returns[index]), int(lengths[index])
            returns[index] = lengths[index] = 0
            if (
                env.reports_episodes
            ):  # a Monitor inside the wrappers knows the raw return, and real ends from lost lives
                episode = infos[index].get("episode")
                finished = (float(episode["r"]), int(episode["l"])) if episode else None
            if finished is None:
                continue
            if played[index] < len(dealt[index]):
                results[dealt[index][played[index]]] = finished
                last[dealt[index][played[index]]] = episode_values(infos[index])
                cut += CUT in infos[index]
            played[index] += 1
        starts = dones
        if on_progress is not None:
            on_progress(len(results), steps)
        if should_abort():
            raise EvaluationInterrupted
        is_late = time.monotonic() - begun >= (limits.max_seconds or (math.inf if results else SECONDS_WITHOUT_END))
        longest = math.inf if ends_episodes else limits.max_steps or UNLIMITED_EPISODE_STEPS
        for index in map(int, np.flatnonzero(lengths >= (1 if is_late else longest))):
            if played[index] < len(dealt[index]):
                results[dealt[index][played[index]]] = float(returns[index]), int(lengths[index])
                cut += 1
                played[index] += 1
                dealt[index] = dealt[index][: played[index]]  # this environment cannot start another episode
        if is_late:
            break
    return [results[index] for index in sorted(results)], cut, [last.get(index, {}) for index in sorted(results)]
