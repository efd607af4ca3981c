"""The configuration that trains as a script does: found out from its model and its environment.

With it a run from Python is a run like any other: it can be evaluated, compared, promoted, served and resumed from the command
line. What cannot be found out is named, with the argument that gives it. The result is checked: a model built from the
configuration must have the same hyperparameters and spaces, and weights of the same names and shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule

from rltrack.agents.devices import torch_threads
from rltrack.agents.environment_section import describe_environment
from rltrack.agents.protocol import MakeEnv, Reconstruction
from rltrack.agents.sb3_description import describe
from rltrack.agents.written_values import as_data
from rltrack.algorithms import ALGORITHMS
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.errors import MissingExtra, RltrackError
from rltrack.named_code import name_of
from rltrack.secrets import one_line

_OURS = (
    "self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model", "monitor_wrapper", "args",
    "kwargs",
)  # fmt: skip


def reconstruct(model: BaseAlgorithm, make_env: MakeEnv | None = None, *, may_build: bool = True) -> Reconstruction:
    """Find out the configuration of a model and its environment, and check it by building both.

    The process's random streams are left as they were.

    Args:
        model: Of a script, with its environment.
        make_env: ``package.module:Name`` of the class or function that makes one environment, if the script says it; or
            ``{package.module:Name: {argument: value}}``.
        may_build: Whether a second environment may be built; if not, what was found out is not checked.
    """
    found = Reconstruction()
    unknown = _describe_agent(model, found)
    if model.env is None:
        found.missing.append("the environment, which the model does not have")
    else:
        found.environment, missing = describe_environment(model.env, make_env)
        found.missing += missing
    if found.is_complete and may_build:
        found.missing += _check(model, found, unknown)
    return found


def _describe_agent(model: BaseAlgorithm, found: Reconstruction) -> set[str]:
    """Describe the model; return the hyperparameters that cannot be written."""
    hyperparameters: dict[str, Any] = {}
    unknown: set[str] = set()
    for name, parameter in _parameters(type(model)).items():
        if not hasattr(model, name):
            continue
        value = _resolved(name, getattr(model, name))
        if _is_default(model, name, value, parameter.default):
            continue
        try:
            hyperparameters[name] = as_data(value)
        except ValueError as error:
            where = found.missing if name == "policy_kwargs" else found.script_only
            unknown.add(name)
            where.append(f"the hyperparameter {name}: {error}")
    if isinstance(model, A2C) and "optimizer_class" not in (model.policy_kwargs or {}):
        hyperparameters["use_rms_prop"] = False  # A2C keeps this argument only as what it puts into policy_kwargs
    found.agent = {
        "algorithm": _algorithm_name(model, found),
        "policy": _policy_name(model, found),
        "hyperparameters": hyperparameters,
        "device": str(model.device.type if hasattr(model.device, "type") else model.device),
    }
    return unknown


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    parameters: dict[str, inspect.Parameter] = {}
    for cls in kind.__mro__:
        for name, parameter in inspect.signature(vars(cls).get("__init__", object.__init__)).parameters.items():
            if name not in _OURS and name != "supported_action_spaces":
                parameters.setdefault(name, parameter)
        passed_on = inspect.signature(cls).parameters.values()
        if not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in passed_on):
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


def _resolved(name: str, value: Any) -> Any:
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
        return bool(value == -np.prod(model.action_space.shape or ()))
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


def _check(model: BaseAlgorithm, found: Reconstruction, unknown: set[str]) -> list[str]:
    """Build a model from the configuration and return what is different, or why it could not be built."""
    from rltrack.agents.factory import build_for_acting

    agent = {**found.agent, "device": "cpu"}
    data = {"agent": agent, "environment": found.environment, "training": {"total_timesteps": 1}}
    try:
        with torch_threads(1):  # building to act leaves this process with the threads of what was built
            built, env = build_for_acting(TrainingConfig.from_mapping({**data, "seed": model.seed or 0}))
    except Exception as error:  # whatever an environment raises that can be built once only
        said = one_line(error)
        said = said if isinstance(error, RltrackError) else f"{type(error).__name__}: {said}"
        return [f"a second model could not be built from what was found: {said}"]
    try:
        return list(_differences(model, built.model, unknown))
    finally:
        close_all(env)


def _differences(model: BaseAlgorithm, other: BaseAlgorithm, unknown: set[str]) -> Iterator[str]:
    for key in ("observation_space", "action_space"):
        if getattr(model, key) != getattr(other, key):
            yield f"the {key}: {getattr(model, key)} here, {getattr(other, key)} in an environment that was built again"
    ours, theirs = (describe(each)["hyperparameters"] for each in (model, other))
    for key in ours:
        if key in unknown or key in ("seed", "verbose", "tensorboard_log", "device"):
            continue
        if ours[key] != theirs.get(key) and str(ours[key]) != str(theirs.get(key)):  # NumPy's -1.0 is -1.0 in a zip
            yield f"the hyperparameter {key}: {ours[key]} here, {theirs.get(key)} in a model that was built again"
    shapes = [{name: tuple(value.shape) for name, value in each.policy.state_dict().items()} for each in (model, other)]
    if shapes[0] != shapes[1]:
        yield "the policy's network, which has other layers in a model that was built again"
