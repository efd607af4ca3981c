"""What an SB3 model is, as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq

from rltrack.agents.sb3_environments import environment_class, spec_of


def describe(model: BaseAlgorithm) -> dict[str, Any]:
    """Return what the model is, as plain data: algorithm, arguments of its constructor as resolved, spaces."""
    arguments: dict[str, Any] = {}
    for cls in reversed(type(model).__mro__):
        for name in inspect.signature(vars(cls).get("__init__", object.__init__)).parameters:
            if name not in ("self", "env", "_init_setup_model", "policy", "args", "kwargs", "supported_action_spaces"):
                value = getattr(model, name, inspect.Parameter.empty)
                if value is not inspect.Parameter.empty:
                    arguments[name] = _readable(value)
    package = type(model).__module__.partition(".")[0]
    description = {
        "algorithm": type(model).__name__,
        "package": package,
        "policy": type(model.policy).__name__,
        "hyperparameters": arguments,
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
        "n_parameters": sum(p.numel() for p in model.policy.parameters())
        if hasattr(model.policy, "parameters")
        else None,
        "device": str(model.device),
    }
    if model.env is not None:
        spec = spec_of(model.env)
        description["environment"] = spec.id if spec is not None else environment_class(model.env)
        description["n_envs"] = model.env.num_envs
    return description


def numerics(model: BaseAlgorithm) -> dict[str, Any]:
    """Return what decides about bits, besides the versions of packages: threads, instruction set, device."""
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(model.device),
        **({"gpu": torch.cuda.get_device_name(model.device)} if model.device.type == "cuda" else {}),
    }


def _readable(value: Any) -> Any:
    """Plain data stays; a class becomes its name; anything else its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _readable(item) for key, item in value.items()}
    if isinstance(value, TrainFreq):
        return [value.frequency, value.unit.value]
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    inner = getattr(value, "value_schedule", None)  # SB3's FloatSchedule around a schedule
    if inner is not None:
        value = getattr(inner, "val", inner)
    return str(value).partition(" at 0x")[0]
