"""`DummyVecEnv.step_wait` without `deepcopy`, where the infos hold what can be copied by hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.util import dict_to_obs

from rltrack.acceleration.networks import NotRecognised
from rltrack.acceleration.patches import overridden

_IMMUTABLE = frozenset(
    {bool, int, float, complex, str, bytes, type(None), np.bool_, np.float32, np.float64, np.int32, np.int64, np.uint8}
)


class _Other(Exception):
    """A value that only `deepcopy` knows to copy."""


def copied(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what `deepcopy` of the infos returns: containers and arrays are copied, immutable values are not."""
    try:
        return [_copied(info) for info in infos]
    except _Other:
        return deepcopy(infos)


def _copied(value: Any) -> Any:
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind is dict:
        return {key: own if type(own) in _IMMUTABLE else _copied(own) for key, own in value.items()}
    if kind is np.ndarray and not value.dtype.hasobject:
        return value.copy(order="K")
    if kind is list:
        return [_copied(own) for own in value]
    raise _Other


def innermost(env: Any) -> Any:
    """Return the environments under all wrappers."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def stepper(env: Any) -> Callable[[], Any]:
    """Return what replaces the `step_wait` of a DummyVecEnv.

    Raises:
        NotRecognised: If it is none, or has one of its own.
    """
    if type(env) is not DummyVecEnv:
        raise NotRecognised(f"the environments run in a {type(env).__name__}")
    if overridden(env):
        raise NotRecognised(f"the environments have their own {', '.join(overridden(env))}")
    is_plain = list(env.keys) == [None]

    def step_wait() -> Any:
        rewards, dones, infos = env.buf_rews, env.buf_dones, env.buf_infos
        observations: Any = env.buf_obs
        for index, own in enumerate(env.envs):
            obs, rewards[index], terminated, truncated, info = own.step(env.actions[index])
            infos[index] = info
            dones[index] = done = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = obs
                obs, env.reset_infos[index] = own.reset()
            if is_plain:
                observations[None][index] = obs
            else:
                env._save_obs(index, obs)
        if is_plain:
            seen: Any = observations[None].copy(order="K")
        else:
            own_copies = OrderedDict((key, value.copy(order="K")) for key, value in observations.items())
            seen = dict_to_obs(env.observation_space, own_copies)
        return seen, rewards.copy(), dones.copy(), copied(infos)

    return step_wait
