"""What SB3 tells while it works: steps and episodes through its callback, metrics through its logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from rltrack.agents.protocol import EpisodeInfo, StepInfo
from rltrack.agents.sb3_environments import is_monitored


class Relay(BaseCallback):
    """SB3's callback: passes each step and each episode's end to the observer. Never stops anything."""

    def __init__(self) -> None:
        super().__init__()
        self.observer: Any = None
        self.schedule: Any = None
        self._returns: np.ndarray | None = None
        self._lengths: np.ndarray | None = None
        self._normalize: VecNormalize | None = None

    def prepare(self, env: VecEnv) -> None:
        """Find out whether the environment reports its episodes, or we must add them up."""
        monitored = is_monitored(env)
        self._returns = None if monitored else np.zeros(env.num_envs)
        self._lengths = None if monitored else np.zeros(env.num_envs, dtype=int)
        self._normalize = unwrap_vec_normalize(env)

    def _on_step(self) -> bool:
        observer = self.observer
        seen = self.locals
        dones = seen.get("dones")
        n_envs = self.training_env.num_envs
        if dones is None:  # ARS steps inside evaluate_policy, and tells only that it stepped
            observer.on_step(n_envs, None)
            return True
        step = None
        if observer.wants_steps:
            step = StepInfo(self.num_timesteps, seen["new_obs"], seen["actions"], seen["rewards"], dones, seen["infos"])
        observer.on_step(n_envs, step)
        if self._returns is not None:
            rewards = seen["rewards"] if self._normalize is None else self._normalize.get_original_reward()
            self._returns += rewards
            if self._lengths is not None:
                self._lengths += 1
        if np.any(dones):
            for index in np.flatnonzero(dones):
                self._report(int(index), seen["infos"][index])
        return True

    def _report(self, index: int, info: Mapping[str, Any]) -> None:
        if self._returns is not None and self._lengths is not None:
            result = float(self._returns[index]), int(self._lengths[index])
            self._returns[index] = self._lengths[index] = 0
        elif "episode" in info:
            result = float(info["episode"]["r"]), int(info["episode"]["l"])
        else:
            return  # a wrapper ended the episode (a life lost), the environment did not
        self.observer.on_episode_end(EpisodeInfo(*result, env_steps=self.num_timesteps, env_index=index))


class MetricsCollector(KVWriter):
    """Takes what the model logs. Times are left out: the loop measures its own."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, dict[str, float]]] = []
        self.losses: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep the numbers of one dump."""
        values: dict[str, float] = {}
        for key, value in key_values.items():
            if key.startswith("time/") or "mlflow" in (key_excluded.get(key) or ()):
                continue
            number = _number(value)
            if number is not None:
                values[key] = number
        self.losses.update(losses_in(values))
        if values:
            self._taken.append((int(step), values))

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """Return what was logged since the last call."""
        taken, self._taken, self.losses = self._taken, [], {}
        return taken

    def close(self) -> None:
        """Nothing is open."""


def _number(value: Any) -> float | None:
    if isinstance(value, str | bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def losses_in(values: Mapping[str, Any]) -> dict[str, float]:
    """Explained variance and means over nothing are NaN legitimately; losses never are."""
    found = {}
    for key, value in values.items():
        if key.startswith("train/") and "loss" in key:
            number = _number(value)
            if number is not None:
                found[key] = number
    return found
