"""An environment that repeats its secret wherever an error can hold one."""

from __future__ import annotations

import gymnasium as gym
from gymnasium import spaces


class Guarded(gym.Env):
    """Its door is closed: building it works, the first reset does not."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, api_key: str, render_mode: str | None = None) -> None:
        self.api_key = api_key

    def reset(self, *, seed=None, options=None):
        """Raise an error with the secret in its message, and in one behind it."""
        try:
            raise KeyError(self.api_key)
        except KeyError as error:
            raise ConnectionError(
                f"login with {self.api_key} at https://me:hunter22@host?token=tok123 refused"
            ) from error


gym.register("Guarded-v0", Guarded, disable_env_checker=True)
