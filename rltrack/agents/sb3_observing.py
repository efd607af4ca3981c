"""What SB3 reports while it works: steps and episodes through its callback, metrics through its logger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from rltrack.agents.protocol import EpisodeInfo, StepInfo
from rltrack.agents.sb3_callbacks import CallbackRelay
from rltrack.agents.sb3_environments import is_monitored
from rltrack.journal.values import columns_of, episode_values, info_metrics, logged, means_of, number

_FEW = 16
_OF_EVERY_EPISODE = frozenset("rlt")
"""Return, length and time, in what Monitor reports."""


class EpisodeCounter:
    """Finds which episodes ended in a step, from SB3's Monitor, or by adding rewards up where there is none.

    Args:
        env: The vectorised training environment.
    """

    def __init__(self, env: VecEnv) -> None:
        monitored = is_monitored(env)
        self._returns = None if monitored else np.zeros(env.num_envs)
        self._lengths = None if monitored else np.zeros(env.num_envs, dtype=int)
        self._normalize: VecNormalize | None = unwrap_vec_normalize(env)

    def state_dict(self) -> dict[str, np.ndarray] | None:
        """Return the sums of the episodes that are running; None where Monitor has them."""
        if self._returns is None or self._lengths is None:
            return None
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray] | None) -> None:
        """Take over what `state_dict` returned."""
        if state is not None and self._returns is not None and self._lengths is not None:
            self._returns[:], self._lengths[:] = state["returns"], state["lengths"]

    def count(self, seen: Mapping[str, Any], env_steps: int) -> list[EpisodeInfo]:
        """Return the episodes that ended.

        Args:
            seen: The callback's ``locals``, with ``rewards``, ``dones`` and ``infos``.
            env_steps: Env steps of the run so far.
        """
        if self._returns is not None and self._lengths is not None:
            self._returns += seen["rewards"] if self._normalize is None else self._normalize.get_original_reward()
            self._lengths += 1
        dones = seen["dones"]
        # for a few environments a loop takes a fifth of numpy's time, and this is asked at every step
        indices = (
            [index for index in range(len(dones)) if dones[index]] if len(dones) <= _FEW else np.flatnonzero(dones)
        )
        ended = []
        for index in map(int, indices):
            info = seen["infos"][index]
            if self._returns is not None and self._lengths is not None:
                episode_return, length = float(self._returns[index]), int(self._lengths[index])
                self._returns[index] = self._lengths[index] = 0
            elif "episode" in info:
                episode_return, length = float(info["episode"]["r"]), int(info["episode"]["l"])
            else:  # a wrapper ended the episode (a life lost), the environment did not
                continue
            ended.append(EpisodeInfo(episode_return, length, env_steps, index, episode_values(info)))
        return ended


class Relay(BaseCallback):
    """SB3's callback: passes each step and each episode's end to the observer, then to a user's callbacks. Never stops anything."""

    def __init__(self, callbacks: CallbackRelay | None = None) -> None:
        super().__init__()
        self.callbacks = callbacks or CallbackRelay()
        self.observer: Any = None
        self.schedule: Any = None
        self.counter: EpisodeCounter
        self._n_envs = 0

    def prepare(self, env: VecEnv) -> None:
        """Find out whether the environment reports its episodes, or we must add them up."""
        self.counter = EpisodeCounter(env)
        self._n_envs = env.num_envs

    def _on_rollout_start(self) -> None:
        if self.callbacks:
            self.callbacks.on_rollout_start()

    def _on_rollout_end(self) -> None:
        if self.callbacks:
            self.callbacks.on_rollout_end(self.locals)

    def _on_step(self) -> bool:
        self._notify()
        if self.callbacks:
            self.callbacks.on_step(self.locals)
        return True

    def _notify(self) -> None:
        observer, seen = self.observer, self.locals
        dones = seen.get("dones")
        if dones is None:  # ARS steps inside evaluate_policy, and reports only that it stepped
            observer.on_step(self._n_envs, None)
            return
        step = None
        if observer.wants_steps:
            step = StepInfo(self.num_timesteps, seen["new_obs"], seen["actions"], seen["rewards"], dones, seen["infos"])
        observer.on_step(self._n_envs, step)
        for episode in self.counter.count(seen, self.num_timesteps):
            observer.on_episode_end(episode)


class MetricsCollector(KVWriter):
    """Takes what the model logs. Times are left out: the loop measures its own."""

    def __init__(self) -> None:
        self._model: BaseAlgorithm | None = None
        self._taken: list[tuple[int, dict[str, float]]] = []
        self._excluded: list[dict[str, list[str]]] = []
        self.losses: dict[str, float] = {}

    def attach(self, model: BaseAlgorithm) -> Callable[[], None]:
        """Listen to a model's logger: its own, or a new one; return what undoes it."""
        self._model = model
        if model._custom_logger:
            formats = model.logger.output_formats
            formats.append(self)
            return lambda: formats.remove(self)
        previous = getattr(model, "_logger", None)

        def put_back() -> None:
            model._custom_logger = False
            if previous is not None:
                model._logger = previous

        model.set_logger(Logger(folder=None, output_formats=[self]))
        return put_back

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep the numbers of one dump."""
        values, excluded = logged(key_values, key_excluded, leave_out=("time/",))
        values |= recent_infos(self._model, values)
        self.losses.update(losses_in(values))
        if values:
            self._taken.append((int(step), values))
            self._excluded.append(excluded)

    def take(self) -> tuple[list[tuple[int, dict[str, float]]], list[dict[str, list[str]]]]:
        """Return what was logged since the last call, and which keys of it are kept from a sink."""
        taken, excluded = self._taken, self._excluded
        self._taken, self._excluded, self.losses = [], [], {}
        return taken, excluded

    def close(self) -> None:
        """Nothing is open."""


def recent_infos(model: BaseAlgorithm | None, values: Mapping[str, float]) -> dict[str, float]:
    """Return the means of the `info_keywords` of the last episodes, over SB3's window, for a dump that has the mean return."""
    if model is None or "rollout/ep_rew_mean" not in values:
        return {}
    episodes = model.ep_info_buffer or ()
    if all(map(_OF_EVERY_EPISODE.issuperset, episodes)):  # asked at every iteration
        return {}
    means = means_of(columns_of([episode_values({"episode": episode}) for episode in episodes]))
    means.pop("is_success", None)  # SB3 has its own mean of these
    return info_metrics("rollout", means, {*values, "rollout/episodes", "rollout/success_rate"})


def losses_in(values: Mapping[str, Any]) -> dict[str, float]:
    """Explained variance and means over nothing are NaN legitimately; losses never are."""
    found = {}
    for key, value in values.items():
        if key.startswith("train/") and "loss" in key:
            loss = number(value)
            if loss is not None:
                found[key] = loss
    return found
