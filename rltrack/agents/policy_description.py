"""How an SB3 policy is built, as plain data: enough to build it again without its algorithm or its environment."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
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
)

from rltrack.agents import sbx_state
from rltrack.agents.exported_policy import FORMAT

_ONLY_FOR_LEARNING = ("optimizer_class", "optimizer_kwargs")


class NotExportable(Exception):
    """The policy cannot be described by data; the message says why, and how to go on."""


def describe_policy(model: BaseAlgorithm) -> dict[str, Any]:
    """Return how a model's policy is built.

    Returns:
        ``{"reason": why}`` where it cannot be stored as data.
    """
    try:
        return _describe(model)
    except NotExportable as error:
        return {"format": FORMAT, "reason": str(error)}


def _describe(model: Any) -> dict[str, Any]:
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
        "observation_space": space_as_data(model.observation_space),
        "input_space": space_as_data(input_space),
        "action_space": space_as_data(model.action_space),
        "normalization": normalize,
        "frame_stack": stacked,
        "recurrent": hasattr(model.policy, "lstm_hidden_state_shape"),
        "masked": "action_masks" in inspect.signature(model.policy.predict).parameters,
    }


def _seen_from_outside(env: VecEnv | None, observation_space: Any) -> tuple[Any, dict[str, Any] | None, int | None]:
    """The observations that come in from the environment, and what is done to them before the policy sees them."""
    if env is None:
        return observation_space, None, None
    layer: Any = env
    normalize: dict[str, Any] | None = None
    stacked: int | None = None
    space = observation_space
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecFrameStack):
            stacked, space = layer.stacked_obs.n_stack, layer.observation_space
        elif isinstance(layer, VecTransposeImage):
            space = layer.venv.observation_space
        elif isinstance(layer, VecNormalize):
            if layer.norm_obs and stacked is not None:
                raise NotExportable(
                    "Frames are stacked after they are normalised, which a server that is given stacked frames cannot repeat. "
                    "Stack them in the environment instead: environment.wrappers with gymnasium.wrappers.FrameStackObservation."
                )
            if layer.norm_obs:
                normalize = {"epsilon": float(layer.epsilon), "clip": float(layer.clip_obs)}
                space = layer.venv.observation_space
        elif not isinstance(layer, VecMonitor):
            raise NotExportable(
                f"Observations pass through {type(layer).__name__}, of which is not known what it does to them. Put it around "
                "the single environment (environment.wrappers) instead."
            )
        layer = layer.venv
    return space, normalize, stacked


def space_as_data(space: Any) -> dict[str, Any]:
    """Return a space as plain data.

    Raises:
        NotExportable: If it is of a kind that cannot be stored.
    """
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_as_data(item) for key, item in space.spaces.items()}}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bounds(space.low),
            "high": _bounds(space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple | list) else int(space.n)}
    raise NotExportable(
        f"The space {space} cannot be stored; a model takes Box, Discrete, MultiDiscrete, MultiBinary or Dict."
    )


def _bounds(values: np.ndarray) -> Any:
    """A single number where all are the same; infinities as text."""
    plain = values.item(0) if values.size and np.all(values == values.flat[0]) else values.tolist()
    return _finite(plain)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _as_data(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type):
        return {"$class": _class_path(value)}
    if isinstance(value, tuple):
        return {"$tuple": [_as_data(item, where) for item in value]}
    if isinstance(value, list):
        return [_as_data(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _as_data(item, f"{where}.{key}") for key, item in value.items()}
    raise NotExportable(
        f"policy_kwargs.{where} is {value!r}, which is no plain data. Give numbers, texts and classes that can be imported."
    )


def _class_path(cls: type) -> str:
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "<locals>" in path:
        raise NotExportable(
            f"{path} cannot be imported by another program. Put the class at the top level of a module."
        )
    return path
