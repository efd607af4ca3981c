"""The configuration that trains as a script does: found out from its model and its environment.

With it a run from Python is a run like any other: it can be evaluated, compared, promoted, served and resumed from the command
line. What cannot be found out is named, with the argument that gives it. The result is checked: a model built from the
configuration must have the same hyperparameters and spaces, and weights of the same names and shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from rltrack.agents.algorithms import ALGORITHMS
from rltrack.agents.algorithms import LinearSchedule as OurLinearSchedule
from rltrack.agents.env_state import StateAccess
from rltrack.agents.env_state.layers import gym_layers
from rltrack.agents.named_code import is_code_name, name_of
from rltrack.agents.sb3_description import describe
from rltrack.agents.sb3_environments import spec_of
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.errors import MissingExtra, RltrackError

_OURS = (
    "self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model", "monitor_wrapper", "args",
    "kwargs",
)  # fmt: skip
_PASSIVE = ("PassiveEnvChecker", "OrderEnforcing")


@dataclass(slots=True)
class Reconstruction:
    """What a configuration can say about a model and its environment.

    Attributes:
        agent: The section ``agent``.
        environment: The section ``environment``; empty if it is unknown.
        missing: What could not be found out, a line each, with what to do.
    """

    agent: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def reconstruct(model: BaseAlgorithm, make_env: str | None = None) -> Reconstruction:
    """Find out the configuration of a model and its environment.

    Args:
        model: Of a script, with its environment.
        make_env: ``package.module:Name`` of the class or function that makes one environment, if the script says it.
    """
    found = Reconstruction()
    _describe_agent(model, found)
    if model.env is not None:
        _describe_environment(model.env, make_env, found)
    return found


# ---- the agent ----


def _describe_agent(model: BaseAlgorithm, found: Reconstruction) -> None:
    hyperparameters: dict[str, Any] = {}
    for name, parameter in _parameters(type(model)).items():
        if not hasattr(model, name):
            continue
        value = _resolved(model, name, getattr(model, name))
        if _is_default(model, name, value, parameter.default):
            continue
        try:
            hyperparameters[name] = as_data(value)
        except ValueError as error:
            found.missing.append(f"the hyperparameter {name}: {error}")
    if isinstance(model, A2C) and "optimizer_class" not in (model.policy_kwargs or {}):
        hyperparameters["use_rms_prop"] = False  # A2C keeps this argument only as what it puts into policy_kwargs
    found.agent = {
        "algorithm": _algorithm_name(model, found),
        "policy": _policy_name(model, found),
        "hyperparameters": hyperparameters,
        "device": str(model.device.type if hasattr(model.device, "type") else model.device),
    }


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    parameters: dict[str, inspect.Parameter] = {}
    for cls in kind.__mro__:
        for name, parameter in inspect.signature(vars(cls).get("__init__", object.__init__)).parameters.items():
            if name not in _OURS and name != "supported_action_spaces":
                parameters.setdefault(name, parameter)
        if not any(
            item.kind is inspect.Parameter.VAR_KEYWORD for item in inspect.signature(cls.__init__).parameters.values()
        ):
            break  # this class passes on what it names, and nothing else
    return parameters


def _algorithm_name(model: BaseAlgorithm, found: Reconstruction) -> str:
    kind = type(model)
    for algorithm in ALGORITHMS.values():
        if algorithm.name.rpartition(".")[2] == kind.__name__ and kind.__module__.partition(".")[0] == algorithm.module:
            try:
                if algorithm.load() is kind:
                    return algorithm.name
            except MissingExtra:
                continue
    return _named(kind, "the algorithm", found)


def _policy_name(model: BaseAlgorithm, found: Reconstruction) -> str:
    kind = type(model.policy)
    for alias, policy in model.policy_aliases.items():
        if policy is kind:
            return alias
    return _named(kind, "the policy", found)


def _named(kind: type, what: str, found: Reconstruction) -> str:
    name = name_of(kind)
    if name is None:
        found.missing.append(
            f"{what} {kind.__qualname__} is defined in {kind.__module__}; move it to a module that can be imported"
        )
    return name or kind.__name__


def _resolved(model: BaseAlgorithm, name: str, value: Any) -> Any:
    if isinstance(value, FloatSchedule):
        inner = value.value_schedule
        return inner.val if isinstance(inner, ConstantSchedule) else inner
    if name == "policy_kwargs":
        return {
            key: item for key, item in (value or {}).items() if key != "use_sde"
        }  # off-policy algorithms put it there
    return value


def _is_default(model: BaseAlgorithm, name: str, value: Any, default: Any) -> bool:
    if default is inspect.Parameter.empty:
        return False
    if isinstance(value, TrainFreq):
        given = (default, "step") if isinstance(default, int) else default
        return (value.frequency, value.unit.value) == tuple(given)
    if name == "target_entropy" and default == "auto":
        return bool(value == -np.prod(model.action_space.shape))
    if name in (
        "replay_buffer_class",
        "rollout_buffer_class",
        "replay_buffer_kwargs",
        "rollout_buffer_kwargs",
        "policy_kwargs",
    ):
        return not value or (
            default is None
            and inspect.isclass(value)
            and value.__module__.startswith("stable_baselines3.common.buffers")
        )
    try:
        return bool(type(value) is type(default) and value == default) or bool(
            isinstance(value, int | float)
            and isinstance(default, int | float)
            and not isinstance(value, bool)
            and value == default
        )
    except Exception:  # whatever a comparison raises: it is not the default then
        return False


def as_data(value: Any) -> Any:
    """Return a hyperparameter as plain data, as a configuration writes it.

    Raises:
        ValueError: If it cannot be written so, with the reason.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    if isinstance(value, TrainFreq):
        return value.frequency if value.unit is TrainFrequencyUnit.STEP else [value.frequency, value.unit.value]
    if isinstance(value, list | tuple):
        return [as_data(item) for item in value]
    if isinstance(value, OurLinearSchedule):
        return {"linear": [value.start, value.end]}
    if isinstance(value, FloatSchedule):
        return as_data(value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule):
        arguments = {"start": value.start, "end": value.end, "end_fraction": value.end_fraction}
        return {"stable_baselines3.common.utils:LinearSchedule": arguments}
    if isinstance(value, NormalActionNoise | OrnsteinUhlenbeckActionNoise):
        return _noise(value)
    name = name_of(value)
    if name is None:
        kind = getattr(value, "__qualname__", type(value).__name__)
        raise ValueError(f"{kind} has no name that can be imported; use a class or function of a module")
    return name


def _noise(noise: Any) -> dict[str, Any]:
    sigma, mean = np.unique(noise._sigma), np.unique(noise._mu)
    if len(sigma) != 1 or mean.tolist() != [0.0]:
        raise ValueError("its noise differs between the actions; use a function of a module that returns it")
    kind = "normal" if isinstance(noise, NormalActionNoise) else "ornstein-uhlenbeck"
    return {kind: float(sigma[0])}


# ---- the environment ----


def check(model: BaseAlgorithm, found: Reconstruction, seed: int) -> None:
    """Build a model from the configuration and compare it; a difference is added to what is missing.

    The process's random streams are left as they were.
    """
    if found.missing or not found.environment:
        return
    from rltrack.agents.factory import build_for_acting

    data = {"agent": found.agent, "environment": found.environment, "training": {"total_timesteps": 1}, "seed": seed}
    try:
        agent, env = build_for_acting(TrainingConfig.from_mapping(data))
    except (RltrackError, ImportError) as error:
        found.missing.append(f"a second model could not be built from what was found: {error}")
        return
    try:
        found.missing.extend(_differences(model, agent.model))
    finally:
        close_all(env)


def _differences(model: BaseAlgorithm, other: BaseAlgorithm) -> Iterator[str]:
    for key in ("observation_space", "action_space"):
        if getattr(model, key) != getattr(other, key):
            yield f"the {key}: {getattr(model, key)} here, {getattr(other, key)} in an environment that was built again"
    ours, theirs = (describe(each)["hyperparameters"] for each in (model, other))
    for key in ours:
        if key not in ("seed", "verbose", "tensorboard_log", "device") and ours[key] != theirs.get(key):
            yield f"the hyperparameter {key}: {ours[key]} here, {theirs.get(key)} in a model that was built again"
    shapes = [{name: tuple(value.shape) for name, value in each.policy.state_dict().items()} for each in (model, other)]
    if shapes[0] != shapes[1]:
        yield "the policy's network, which has other layers in a model that was built again"


def _describe_environment(env: VecEnv, make_env: str | None, found: Reconstruction) -> None:
    section: dict[str, Any] = {"n_envs": env.num_envs}
    layer = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecNormalize):
            section["normalize"] = _normalization(layer)
        elif isinstance(layer, VecFrameStack):
            section["frame_stack"] = layer.stacked_obs.n_stack
        elif not isinstance(layer, VecTransposeImage | VecMonitor):
            found.missing.append(f"the vectorised wrapper {type(layer).__name__}, which a configuration cannot name")
        layer = layer.venv
    if isinstance(layer, SubprocVecEnv):
        section["vectorization"] = "subproc"
    elif not isinstance(layer, DummyVecEnv):
        found.missing.append(f"the vectorised environment {type(layer).__name__}, which a configuration cannot name")
    described = {"id": make_env} if make_env is not None else _one_environment(layer, found)
    if described is None:
        return
    keywords = _info_keywords(layer)
    found.environment = {**described, **section, **({"info_keywords": keywords} if keywords else {})}


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


def _one_environment(layer: VecEnv, found: Reconstruction) -> dict[str, Any] | None:
    """Return id, arguments and wrappers of one environment; None if they cannot be found out."""
    spec = spec_of(layer)
    if spec is not None:
        return _from_spec(spec, found)
    if not isinstance(layer, DummyVecEnv):
        found.missing.append(
            "the environment in other processes, which has no specification of Gymnasium; pass make_env='package.module:Name'"
        )
        return None
    parts = [part for part in gym_layers(layer.envs[0]) if not isinstance(part, Monitor | StateAccess)]
    core = parts.pop()
    described = _constructor(core, found, "the environment")
    if described is None:
        return None
    name, arguments = described
    wrappers = []
    for part in reversed(parts):
        if type(part).__name__ in _PASSIVE:
            continue
        wrapper = _constructor(part, found, "the wrapper")
        if wrapper is None:
            return None
        wrappers.append({wrapper[0]: wrapper[1]} if wrapper[1] else wrapper[0])
    return {"id": name, **({"kwargs": arguments} if arguments else {}), **_wrapped(wrappers)}


def _from_spec(spec: Any, found: Reconstruction) -> dict[str, Any] | None:
    wrappers: list[Any] = []
    for wrapper in spec.additional_wrappers:
        name = wrapper.entry_point
        if wrapper.kwargs is None or not is_code_name(name) or name.startswith("__main__"):
            found.missing.append(
                f"the wrapper {wrapper.name}, which does not record its arguments; pass make_env='package.module:Name', the "
                "function that makes the environment with its wrappers"
            )
            return None
        try:
            arguments = {key: as_data(value) for key, value in wrapper.kwargs.items()}
        except ValueError as error:
            found.missing.append(f"the wrapper {wrapper.name}: {error}; pass make_env='package.module:Name'")
            return None
        wrappers.append({name: arguments} if arguments else name)
    try:
        kwargs = {key: as_data(value) for key, value in spec.kwargs.items() if key != "render_mode"}
    except ValueError as error:
        found.missing.append(f"an argument of {spec.id}: {error}; pass make_env='package.module:Name'")
        return None
    registered = gym.registry.get(spec.id)
    entry = spec.entry_point if isinstance(spec.entry_point, str) else name_of(spec.entry_point)
    limit: list[Any] = []
    if _is_gymnasiums_own(entry) and registered is not None:
        env_id = spec.id
        if spec.max_episode_steps != registered.max_episode_steps and spec.max_episode_steps is not None:
            limit = [{"gymnasium.wrappers:TimeLimit": {"max_episode_steps": spec.max_episode_steps}}]
        kwargs = {
            key: value
            for key, value in kwargs.items()
            if registered.kwargs.get(key, value) != value or key not in registered.kwargs
        }
    elif entry is not None and is_code_name(entry) and not entry.startswith("__main__"):
        env_id = entry
        if spec.max_episode_steps is not None:
            limit = [{"gymnasium.wrappers:TimeLimit": {"max_episode_steps": spec.max_episode_steps}}]
    else:
        found.missing.append(_unnamed(f"the environment {spec.id}"))
        return None
    return {"id": env_id, **({"kwargs": kwargs} if kwargs else {}), **_wrapped([*limit, *wrappers])}


def _is_gymnasiums_own(entry: str | None) -> bool:
    return str(entry).partition(".")[0] in ("gymnasium", "ale_py", "shimmy")


def _wrapped(wrappers: list[Any]) -> dict[str, Any]:
    return {"wrappers": wrappers, "wrappers_inside_monitor": True} if wrappers else {}


def _constructor(part: Any, found: Reconstruction, what: str) -> tuple[str, dict[str, Any]] | None:
    """Return a layer's class and the arguments that it was made with, as far as it keeps them under their own names."""
    name = name_of(type(part))
    if name is None:
        found.missing.append(_unnamed(f"{what} {type(part).__qualname__}"))
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
            found.missing.append(
                f"the argument {key} of {what} {type(part).__qualname__}, which keeps it under no attribute of that name; pass "
                "make_env='package.module:Name', the function that makes the environment"
            )
            return None
        try:
            data = as_data(value)
        except ValueError as error:
            found.missing.append(
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
