"""An environment of your own: a cart that has to be parked.

python examples/custom_environment.py

The command line and configurations name it by its module, which must be on Python's path:

    PYTHONPATH=examples rltrack train --algo ppo --env custom_environment:Parking-v0 --timesteps 20000
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Parking(gym.Env[np.ndarray, np.ndarray]):
    """Push a cart along a line to the middle, and stop it there.

    Observation: position in [-2, 2] m and speed in [-2, 2] m/s, shape ``(2,)``. Action: force in [-1, 1] N, shape ``(1,)``.
    Reward: minus the distance to the middle, minus a tenth of the force, a step. 50 steps an episode.

    Everything random comes from ``self.np_random``, and all state is in plain attributes: so rltrack can take the environment's
    inside into each version, and a resumed training is exact. `rltrack verify-resume` shows it.

    Args:
        wind: Standard deviation of the wind's push, in N.
    """

    observation_space = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    length, dt = 50, 0.1

    def __init__(self, wind: float = 0.05) -> None:
        self.wind = wind
        self.state = np.zeros(2)
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.array([self.np_random.uniform(-1.5, 1.5), 0.0])
        self.steps = 0
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = float(np.clip(action, -1.0, 1.0)[0])
        position, speed = self.state
        speed = np.clip(speed + (force + self.wind * self.np_random.standard_normal()) * self.dt, -2.0, 2.0)
        self.state = np.array([np.clip(position + speed * self.dt, -2.0, 2.0), speed])
        self.steps += 1
        reward = -abs(self.state[0]) - 0.1 * abs(force)
        return self.state.astype(np.float32), float(reward), False, self.steps >= self.length, {}


gym.register("Parking-v0", Parking)


def main() -> None:
    from stable_baselines3 import PPO

    from rltrack import TrainingLoop

    agent = PPO(
        "MlpPolicy", gym.make("Parking-v0"), n_steps=500, batch_size=100, learning_rate=1e-3, gamma=0.95, seed=0
    )
    statistics = TrainingLoop(agent, total_timesteps=15_000, eval_freq=5_000).run()
    print(f"{statistics.state.value}: {statistics.reason}")
    for evaluation in statistics.evaluations:
        print(
            f"mean return {evaluation.mean:.1f}, 95 % interval {evaluation.interval.low:.1f} to {evaluation.interval.high:.1f}"
        )


if __name__ == "__main__":
    main()
