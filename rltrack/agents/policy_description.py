"""How an SB3 policy is built, as plain data: enough to build it again without its algorithm or its environment."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from rltrack.agents import sbx_state
from rltrack.agents.env_state.layers import vec_layers
from rltrack.agents.gym_types import Space
from rltrack.agents.policy_data import FORMAT
from rltrack.agents.policy_spaces import space_as_data

_ONLY_FOR_LEARNING = ("optimizer_class", "optimizer_kwargs")


class NotExportable(Exception):
    """The policy cannot be described by data; the message says why, and what to do."""


def describe_policy(model: BaseAlgorithm) -> dict[str, Any]:
    """Return how a model's policy is built.

    Returns:
        ``{"reason": why}`` where it cannot be stored as data.
    """
    try:
        return _describe(model)
    except NotExportable as error:
        return {"format": FORMAT, "reason": str(error)}


def _describe(model: BaseAlgorithm) -> dict[str, Any]:
    if sbx_state.is_sbx(model):
        raise NotExportable(
            f"{type(model).__name__} is SBX's, whose policies live in JAX; only SB3's and sb3-contrib's can be stored as models. "
            "Play it with `rltrack eval`, load it with rltrack.load_agent(), or train SB3's algorithm of the same name."
        )
    parameters = inspect.signature(model.policy_class.__init__).parameters
    arguments = {key: item for key, item in dict(model.policy_kwargs).items() if key not in _ONLY_FOR_LEARNING}
    if "use_sde" in parameters and "use_sde" not in arguments and hasattr(model, "use_sde"):
        arguments["use_sde"] = model.use_sde
    input_space, normalize, stacked = _seen_from_outside(model.env, model.observation_space)
    return {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "policy_class": _class_path(model.policy_class),
        "policy_kwargs": {key: _as_data(item, key) for key, item in arguments.items()},
        "takes_schedule": "lr_schedule" in parameters,
        "observation_space": _space(model.observation_space),
        "input_space": _space(input_space),
        "action_space": _space(model.action_space),
        "normalization": normalize,
        "frame_stack": stacked,
        "recurrent": hasattr(model.policy, "lstm_hidden_state_shape"),
        "masked": "action_masks" in inspect.signature(model.policy.predict).parameters,
    }


def _seen_from_outside(
    env: VecEnv | None, observation_space: Space
) -> tuple[Space, dict[str, object] | None, int | None]:
    """The observations that come in from the environment, and what is done to them before the policy sees them."""
    if env is None:
        return observation_space, None, None
    layer = env
    normalize: dict[str, object] | None = None
    stacked: int | None = None
    space = observation_space
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecFrameStack):
            stacked = layer.stacked_obs.n_stack
            space = space if normalize else layer.observation_space  # normalised outside of it: what came in there
        elif isinstance(layer, VecTransposeImage):
            space = layer.venv.observation_space
        elif isinstance(layer, VecNormalize):
            if layer.norm_obs and stacked is not None:
                raise NotExportable(
                    "Frames are stacked after they are normalised, which a server that is given stacked frames cannot repeat. "
                    "Stack them in the environment instead: environment.wrappers with gymnasium.wrappers.FrameStackObservation."
                )
            if layer.norm_obs:
                normalize = {
                    key: _number(value) for key, value in (("epsilon", layer.epsilon), ("clip", layer.clip_obs))
                }
                space = _before_normalization(layer)
        elif not isinstance(layer, VecMonitor):
            raise NotExportable(
                f"Observations pass through {type(layer).__name__}, of which is not known what it does to them. Put it around "
                "the single environment (environment.wrappers) instead."
            )
        layer = layer.venv
    return space, normalize, stacked


def _before_normalization(layer: VecNormalize) -> Space:
    """The space of what VecNormalize takes: of an image in a dictionary it has overwritten that too, in place."""
    space = layer.venv.observation_space
    if not isinstance(space, spaces.Dict):
        return space
    images = {}
    for key in layer.obs_rms:
        item = space.spaces[key]
        overwritten = (
            isinstance(item, spaces.Box) and len(item.shape) == 3 and item.dtype == np.float32
            and np.all(item.low == -layer.clip_obs) and np.all(item.high == layer.clip_obs)
        )  # fmt: skip
        if overwritten and _raw_dtype(layer, key) == np.uint8:
            images[key] = spaces.Box(0, 255, item.shape, np.uint8)  # SB3 takes nothing else for an image
    return spaces.Dict([(key, images.get(key, item)) for key, item in space.spaces.items()])


def _raw_dtype(layer: VecNormalize, key: str) -> Any:
    """The dtype of the observations themselves: of the last one, or of the memory that is kept for them."""
    seen = layer.__dict__.get("old_obs")
    if isinstance(seen, dict):
        return seen[key].dtype
    innermost: Any = layer.unwrapped
    if hasattr(innermost, "buf_obs"):
        return innermost.buf_obs[key].dtype
    return innermost.get_attr("observation_space", [0])[0][key].dtype  # in a worker process it is not overwritten


def as_the_policy_sees(env: VecEnv | None, observations: Any) -> Any:
    """Return raw observations, first axis ``(n,)``, as the training environment's layers would give them to the policy."""
    for layer in reversed(list(vec_layers(env))) if env is not None else ():
        if isinstance(layer, VecTransposeImage):
            observations = layer.transpose_observations(observations)
        elif isinstance(layer, VecNormalize):
            observations = layer.normalize_obs(observations)
    return observations


@contextlib.contextmanager
def other_statistics(env: VecEnv | None) -> Iterator[dict[str, Any] | None]:
    """Let the environment normalise by other statistics than those of the beginning, which change nothing; yields them."""
    layer = None if env is None else unwrap_vec_normalize(env)
    if layer is None or not layer.norm_obs:
        yield None
        return
    before = layer.obs_rms
    layer.obs_rms = copy.deepcopy(before)
    by_key = layer.obs_rms if isinstance(layer.obs_rms, dict) else {"": layer.obs_rms}
    for index, rms in enumerate(by_key.values()):
        steps = np.arange(rms.mean.size, dtype=np.float64).reshape(rms.mean.shape)
        rms.mean, rms.var = 0.1 + 0.01 * (steps % 7) + 0.05 * index, 0.5 + 0.1 * (steps % 5) + 0.2 * index
    described = {key: {"mean": rms.mean, "var": rms.var} for key, rms in by_key.items()}
    try:
        yield {"observations": described if isinstance(layer.obs_rms, dict) else described[""]}
    finally:
        layer.obs_rms = before


def _space(space: Space) -> dict[str, object]:
    try:
        return space_as_data(space)
    except ValueError as error:
        raise NotExportable(str(error)) from None


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _as_data(value: object, where: str) -> object:
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if value is None or (isinstance(value, bool | int | float | str) and is_finite):
        return value
    if isinstance(value, type):
        return {"$class": _class_path(value)}
    if isinstance(value, tuple):
        return {"$tuple": [_as_data(item, where) for item in value]}
    if isinstance(value, list):
        return [_as_data(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _as_data(item, f"{where}.{key}") for key, item in value.items()}
    raise NotExportable(
        f"policy_kwargs.{where} is {value!r}, which is no plain data. Give numbers, texts and classes that can be imported."
    )


def _class_path(cls: type) -> str:
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "." in cls.__qualname__:  # the latter: inside of a function or another class
        raise NotExportable(
            f"{path} cannot be imported by another program. Put the class at the top level of a module."
        )
    return path
