"""The section ``environment`` of a configuration, found out from a script's vectorised environment."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from rltrack.agents.env_state import StateAccess
from rltrack.agents.env_state.layers import gym_layers, vec_layers
from rltrack.agents.protocol import MakeEnv
from rltrack.agents.sb3_environments import spec_of
from rltrack.agents.written_values import as_data
from rltrack.errors import ConfigurationError
from rltrack.named_code import is_code_name, name_of
from rltrack.secrets import shown

_BY_MAKE = (TimeLimit, OrderEnforcing, PassiveEnvChecker)
"""What `gymnasium.make` puts around an environment, inside everything else."""


def describe_environment(env: VecEnv, make_env: MakeEnv | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the section, and what could not be found out, a line each with what to do.

    Args:
        env: Of a script.
        make_env: ``package.module:Name`` of what makes one environment, if the script says it; or
            ``{package.module:Name: {argument: value}}``.

    Returns:
        The section, without ``id`` if the single environment is unknown.
    """
    missing: list[str] = []
    section: dict[str, Any] = {"n_envs": env.num_envs}
    *wrappers, layer = vec_layers(env)
    for wrapper in wrappers:
        if isinstance(wrapper, VecNormalize):
            section["normalize"] = _normalization(wrapper)
        elif isinstance(wrapper, VecFrameStack):
            section["frame_stack"] = wrapper.stacked_obs.n_stack
        elif not isinstance(wrapper, VecTransposeImage | VecMonitor | VecCheckNan | VecVideoRecorder):
            missing.append(f"the vectorised wrapper {type(wrapper).__name__}, which a configuration cannot name")
    if isinstance(layer, SubprocVecEnv):
        section["vectorization"] = "subproc"
    elif not isinstance(layer, DummyVecEnv):
        missing.append(f"the vectorised environment {type(layer).__name__}, which a configuration cannot name")
    if keywords := _info_keywords(layer):
        section["info_keywords"] = keywords
    one = _given(make_env) if make_env is not None else _one_environment(layer, missing)
    return {**(one or {}), **section}, missing


def is_made_by_specification(env: VecEnv, section: Mapping[str, Any]) -> bool:
    """Return whether Gymnasium's specification makes another environment that counts returns alike, without the section."""
    spec = spec_of(env)
    is_whole = spec is not None and all(wrapper.kwargs is not None for wrapper in spec.additional_wrappers)
    return is_whole and section.get("wrappers_inside_monitor") is not False


def _given(make_env: MakeEnv) -> dict[str, Any]:
    if callable(make_env):
        name = name_of(make_env)
        if name is None:
            raise ConfigurationError(
                f"make_env is {getattr(make_env, '__qualname__', make_env)}, which is defined in the script or a notebook. Move it "
                "to a module that can be imported."
            )
        return {"id": name}
    if isinstance(make_env, str):
        return {"id": make_env}
    if not isinstance(make_env, Mapping) or len(make_env) != 1:
        raise ConfigurationError(
            f"make_env is {shown(make_env)}. Write package.module:Name, or {{package.module:Name: {{argument: value}}}}."
        )
    (name, arguments), *_ = make_env.items()
    return {"id": name, "kwargs": dict(arguments or {})}


def _normalization(layer: VecNormalize) -> dict[str, Any]:
    options = {
        name: getattr(layer, name)
        for name in ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
    }
    if isinstance(layer.observation_space, gym.spaces.Dict) and layer.norm_obs_keys is not None:
        options["norm_obs_keys"] = list(layer.norm_obs_keys)
    return options


def _info_keywords(layer: VecEnv) -> list[str]:
    if isinstance(layer, DummyVecEnv):
        for part in gym_layers(layer.envs[0]):
            if isinstance(part, Monitor):
                return list(part.info_keywords)
    return []


def _one_environment(layer: VecEnv, missing: list[str]) -> dict[str, Any] | None:
    """Return id, arguments and wrappers of one environment; None if they cannot be found out."""
    parts = list(gym_layers(layer.envs[0])) if isinstance(layer, DummyVecEnv) else []
    spec = spec_of(layer)
    if spec is not None:
        return _from_spec(spec, parts, missing)
    if not isinstance(layer, DummyVecEnv):
        missing.append(
            "the environment in other processes, which has no specification of Gymnasium; pass make_env='package.module:Name'"
        )
        return None
    described = _constructor(parts[-1], missing, "the environment")
    if described is None:
        return None
    name, arguments = described
    wrappers: list[Any] = []
    for part in reversed(parts[:-1]):
        if not isinstance(part, Monitor | StateAccess) and not _add(part, wrappers, missing):
            return None
    return {"id": name, **({"kwargs": arguments} if arguments else {}), **_wrapped(wrappers, parts, missing)}


def _add(part: Any, wrappers: list[Any], missing: list[str]) -> bool:
    """Add a wrapper's name and arguments; return whether they could be found out."""
    if type(part) is AtariWrapper:
        return True  # it only holds the others
    wrapper = _constructor(part, missing, "the wrapper")
    if wrapper is not None:
        wrappers.append({wrapper[0]: wrapper[1]} if wrapper[1] else wrapper[0])
    return wrapper is not None


def _from_spec(spec: Any, parts: list[Any], missing: list[str]) -> dict[str, Any] | None:
    wrappers: list[Any] = []
    built = {part.class_name(): part for part in parts[:-1]}
    for wrapper in spec.additional_wrappers:
        name = wrapper.entry_point
        if wrapper.kwargs is None and wrapper.name in built:
            if not _add(built[wrapper.name], wrappers, missing):
                return None
            continue
        if wrapper.kwargs is None or not is_code_name(name) or name.startswith("__main__"):
            missing.append(
                f"the wrapper {wrapper.name}, which does not record its arguments; pass make_env='package.module:Name', the "
                "function that makes the environment with its wrappers"
            )
            return None
        try:
            arguments = {key: as_data(value) for key, value in wrapper.kwargs.items()}
        except ValueError as error:
            missing.append(f"the wrapper {wrapper.name}: {error}; pass make_env='package.module:Name'")
            return None
        wrappers.append({name: arguments} if arguments else name)
    try:
        kwargs = {key: as_data(value) for key, value in spec.kwargs.items() if key != "render_mode"}
    except ValueError as error:
        missing.append(f"an argument of {spec.id}: {error}; pass make_env='package.module:Name'")
        return None
    registered = gym.registry.get(spec.id)
    entry = spec.entry_point if isinstance(spec.entry_point, str) else name_of(spec.entry_point)
    if str(entry).partition(".")[0] in ("gymnasium", "ale_py", "shimmy") and registered is not None:
        env_id = spec.id
        kwargs = {
            key: value
            for key, value in kwargs.items()
            if registered.kwargs.get(key, value) != value or key not in registered.kwargs
        }
        if spec.max_episode_steps != registered.max_episode_steps and spec.max_episode_steps is not None:
            kwargs["max_episode_steps"] = spec.max_episode_steps
    elif entry is not None and is_code_name(entry) and not entry.startswith("__main__"):
        env_id = (
            entry  # another process may not import what registers the id; so this is what gymnasium.make puts around it
        )
        if spec.max_episode_steps is not None:
            wrappers.insert(0, {"gymnasium.wrappers:TimeLimit": {"max_episode_steps": spec.max_episode_steps}})
        if spec.order_enforce:
            wrappers.insert(0, "gymnasium.wrappers:OrderEnforcing")
        if not spec.disable_env_checker:
            wrappers.insert(0, "gymnasium.wrappers:PassiveEnvChecker")
    else:
        missing.append(_unnamed(f"the environment {spec.id}"))
        return None
    return {"id": env_id, **({"kwargs": kwargs} if kwargs else {}), **_wrapped(wrappers, parts, missing)}


def _wrapped(wrappers: list[Any], parts: list[Any], missing: list[str]) -> dict[str, Any]:
    """Return the keys about wrappers, with the place of Monitor among the layers, outermost first."""
    if not wrappers:
        return {}
    layers = [part for part in parts[:-1] if not isinstance(part, StateAccess)]
    while layers and isinstance(layers[-1], _BY_MAKE):
        layers.pop()
    kinds = [isinstance(part, Monitor) for part in layers]
    is_inside = True in kinds and not kinds[0]
    if is_inside and not kinds[-1]:
        missing.append(
            "Monitor between two wrappers; pass make_env='package.module:Name', the function that makes the environment with its "
            "wrappers"
        )
    return {"wrappers": wrappers, "wrappers_inside_monitor": not is_inside}


def _constructor(part: Any, missing: list[str], what: str) -> tuple[str, dict[str, Any]] | None:
    """Return a layer's class and the arguments that it was made with, as far as it keeps them under their own names."""
    name = name_of(type(part))
    if name is None:
        missing.append(_unnamed(f"{what} {type(part).__qualname__}"))
        return None
    recorded = getattr(part, "_saved_kwargs", None)
    arguments: dict[str, Any] = {}
    for key, parameter in list(inspect.signature(type(part).__init__).parameters.items())[1:]:
        if key in ("env", "render_mode") or parameter.kind in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            continue
        if isinstance(recorded, Mapping) and key in recorded:
            value = recorded[key]
        elif key in vars(part) or f"_{key}" in vars(part):
            value = vars(part).get(key, vars(part).get(f"_{key}"))
        else:
            missing.append(
                f"the argument {key} of {what} {type(part).__qualname__}, which keeps it under no attribute of that name; pass "
                "make_env='package.module:Name', the function that makes the environment"
            )
            return None
        try:
            data = as_data(value)
        except ValueError as error:
            missing.append(
                f"the argument {key} of {what} {type(part).__qualname__}: {error}; pass make_env='package.module:Name'"
            )
            return None
        if parameter.default is inspect.Parameter.empty or data != parameter.default:
            arguments[key] = data
    return name, arguments


def _unnamed(what: str) -> str:
    return (
        f"{what}, which is defined in the script or a notebook; move it to a module that can be imported, or pass "
        "make_env='package.module:Name'"
    )
