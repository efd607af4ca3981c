"""A wrapper that changes the task."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class SlowSensor(gym.ObservationWrapper):
    """The sensor shows a moving average of the level.

    Args:
        env: The tank.
        share: How much of the new level shows at once, in (0, 1].
    """

    def __init__(self, env: gym.Env, share: float = 0.5) -> None:
        super().__init__(env)
        self.share = share
        self.shown = 0.0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with the true level."""
        observation, info = self.env.reset(**kwargs)
        self.shown = float(observation[0])
        return observation, info

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Put the shown level in the place of the true one."""
        self.shown += self.share * (float(observation[0]) - self.shown)
        return np.array([self.shown, observation[1]], np.float32)
