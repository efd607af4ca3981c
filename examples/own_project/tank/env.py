"""Hold the level of a water tank at a target that moves, by opening a valve."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np


class TankEnv(gym.Env):
    """A tank with a leak.

    Observation: level and target, in metres, shape ``(2,)``. Action: how far the valve is open, in [-1, 1], shape ``(1,)``. Reward:
    minus the distance between level and target, in metres.

    Args:
        leak: Share of the water that is lost in each step.
        horizon: Steps of an episode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, leak: float = 0.05, horizon: int = 50) -> None:
        self.observation_space = gym.spaces.Box(0.0, 4.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.leak = leak
        self.horizon = horizon
        self.level = self.target = 0.0
        self.steps = 0
        self.error = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start with an arbitrary level and target."""
        super().reset(seed=seed)
        self.level, self.target = (float(value) for value in self.np_random.uniform(0.5, 3.5, 2))
        self.steps, self.error = 0, 0.0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Open the valve for one step."""
        flow = 0.2 * (float(action[0]) + 1.0)
        self.level = float(np.clip(self.level * (1.0 - self.leak) + flow, 0.0, 4.0))
        distance = abs(self.level - self.target)
        self.error += distance
        self.steps += 1
        truncated = self.steps >= self.horizon
        info: dict[str, Any] = {}
        if truncated:
            info = {"is_success": distance < 0.2, "mean_error": self.error / self.steps}
        return self._observation(), -distance, False, truncated, info

    def _observation(self) -> np.ndarray:
        return np.array([self.level, self.target], np.float32)


def make_tank(leak: float = 0.05) -> gym.Env:
    """Return a tank whose level is measured with a delay."""
    from tank.wrappers import SlowSensor

    return SlowSensor(TankEnv(leak))
