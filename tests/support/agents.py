"""Small real things to train: an environment with a known optimum, an agent that does as it is told, a hook that listens."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rltrack.agents.protocol import EpisodeInfo, IterationStats, StepInfo


class TinyEnv(gym.Env):
    """Five steps; the reward of each is the action, plus a little noise from the episode's seed.

    The best return is 5.0, for the action 1.0.
    """

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-100.0, 100.0, (1,), np.float32)
    length = 5

    def __init__(self, noise: float = 0.01):
        self.noise = noise
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._t += 1
        reward = float(np.asarray(action).ravel()[0]) + self.noise * float(self.np_random.standard_normal())
        return np.full(1, self._t / self.length, np.float32), reward, False, self._t >= self.length, {}


if "rltrack-tests/Tiny-v0" not in gym.registry:
    gym.register("rltrack-tests/Tiny-v0", entry_point="tests.support.agents:TinyEnv")


class ScriptedAgent:
    """Not SB3. One iteration is `steps` env steps; its skill follows a script, so that evaluations can be foretold.

    Args:
        skills: The action that it takes after iteration 1, 2, …; None leaves the skill as it is.
        steps: Env steps per iteration.
        losses: A loss to report per iteration; the last one goes on.
    """

    def __init__(self, skills=(1.0,), steps: int = 10, losses=(0.5,), weights_break_at: int | None = None):
        self.skills, self.steps, self.losses = list(skills), steps, list(losses)
        self.weights_break_at = weights_break_at
        self.skill, self.iteration = 0.0, 0
        self.remaining: list[float] = []
        self.scales: list[float] = []
        self.seeds: list[int | None] = []
        self.env: Any = None
        self.before_iteration = lambda iteration: None

    def bind(self, env, seed):
        self.env, self.total = env, 0
        self.seeds.append(seed)
        env.reset(seed=seed)

    def advance(self, observer):
        self.iteration += 1
        self.before_iteration(self.iteration)
        episode_return, length = 0.0, 0
        for _ in range(self.steps):
            observation, reward, terminated, truncated, info = self.env.step(np.array([self.skill], np.float32))
            self.total += 1
            episode_return, length = episode_return + reward, length + 1
            done = terminated or truncated
            step = None
            if observer.wants_steps:
                step = StepInfo(
                    self.total,
                    observation[None],
                    np.array([[self.skill]]),
                    np.array([reward]),
                    np.array([done]),
                    [info],
                )
            observer.on_step(1, step)
            if done:
                observer.on_episode_end(EpisodeInfo(episode_return, length, self.total))
                episode_return, length = 0.0, 0
                self.env.reset()
        wanted = self.skills[min(self.iteration, len(self.skills)) - 1]
        self.skill = self.skill if wanted is None else wanted
        if self.iteration == self.weights_break_at:
            self.skill = float("nan")
        loss = self.losses[min(self.iteration, len(self.losses)) - 1]
        return IterationStats(
            self.steps, [(self.total, {"train/loss": loss, "train/skill": self.skill})], {"train/loss": loss}
        )

    def predict(self, observation, *, state=None, episode_start=None, deterministic=True, **inputs):
        return np.full((len(observation), 1), self.skill, np.float32), None

    def set_schedule(self, remaining):
        self.remaining.append(remaining)

    def capture(self):
        return {
            "policy": {"skill": np.array([self.skill])},
            "optimizer": {},
            "counters": {"iteration": self.iteration, "total": self.total},
        }

    def restore(self, state):
        if "policy" in state:
            self.skill = float(state["policy"]["skill"][0])
        if "counters" in state:
            self.iteration, self.total = state["counters"]["iteration"], state["counters"]["total"]

    def scale_learning_rate(self, factor):
        self.scales.append(factor)


class RecordingHook:
    """Notes every call, with the env steps at that moment."""

    def __init__(self):
        self.calls: list[tuple[str, int]] = []

    def names(self):
        return [name for name, _ in self.calls]

    def on_training_start(self, progress):
        self.calls.append(("on_training_start", progress.env_steps))

    def on_step(self, progress, step_info):
        self.calls.append(("on_step", progress.env_steps))

    def on_episode_end(self, progress, episode_info):
        self.calls.append(("on_episode_end", progress.env_steps))

    def on_iteration_end(self, progress, iteration_info):
        self.calls.append(("on_iteration_end", progress.env_steps))

    def on_evaluation_end(self, progress, evaluation):
        self.calls.append(("on_evaluation_end", progress.env_steps))

    def on_checkpoint(self, progress, version):
        self.calls.append(("on_checkpoint", progress.env_steps))

    def on_pause(self, progress):
        self.calls.append(("on_pause", progress.env_steps))

    def on_resume(self, progress):
        self.calls.append(("on_resume", progress.env_steps))

    def on_error(self, progress, error):
        self.calls.append(("on_error", progress.env_steps))

    def on_training_end(self, progress):
        self.calls.append(("on_training_end", progress.env_steps))


TINY = "rltrack-tests/Tiny-v0"


@cache
def own_agent_of_the_docs() -> type:
    """The class of the complete program in docs/own-agent.md."""
    page = Path(__file__).resolve().parents[2] / "docs" / "own-agent.md"
    module: dict[str, Any] = {"__name__": "own_agent"}
    exec(page.read_text(encoding="utf-8").split("```python\n", 1)[1].split("```", 1)[0], module)
    return module["Reinforce"]


class NullObserver:
    """Receives what happens inside an iteration and does nothing."""

    wants_steps = False

    def on_step(self, env_steps, step):
        pass

    def on_episode_end(self, episode):
        pass
