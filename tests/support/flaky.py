"""CartPole that raises at random moments, a bounded number of times over all processes; and one that gives NaN."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class FlakyCartPole(CartPoleEnv):
    """Raises with a probability at each step, while the file holds failures to spend.

    Args:
        failures: File of which each byte is a failure to spend.
        probability: Of a failure, at each step.
    """

    def __init__(self, failures: str, probability: float = 0.01, **kwargs: Any):
        super().__init__(**kwargs)
        self._failures, self._probability = failures, probability

    def step(self, action):
        left = Path(self._failures).stat().st_size
        if left and random.SystemRandom().random() < self._probability:
            os.truncate(self._failures, left - 1)
            raise RuntimeError("the simulator crashed")
        return super().step(action)


class NanCartPole(CartPoleEnv):
    """Its rewards are no numbers."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


for name, entry_point in (("Flaky-v0", FlakyCartPole), ("Nan-v0", NanCartPole)):
    if name not in gym.registry:
        gym.register(name, entry_point=entry_point, max_episode_steps=500)
