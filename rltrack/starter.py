"""Writes a first configuration for an algorithm and an environment, with a comment for every key."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rltrack.agents.environments import make_gym_env
from rltrack.agents.factory import check
from rltrack.algorithms import find_algorithm
from rltrack.cleanup import close_all
from rltrack.config import DEFAULT_TOTAL_TIMESTEPS, TrainingConfig
from rltrack.errors import ConfigurationError, MissingExtra
from rltrack.plain_data import merge
from rltrack.zoo_presets import zoo_preset

_OURS = {"self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}
_ORDER = ("name", "seed", "start_from", "agent", "environment")


def starter(algorithm: str, env_id: str, *, timesteps: int | None = None) -> str:
    """Return a commented configuration as YAML.

    If rl_zoo3 (the extra 'zoo') has tuned settings for the pair, it contains them; else the algorithm's defaults.

    Args:
        algorithm: Such as ``ppo``.
        env_id: Gymnasium id.
        timesteps: Budget in env steps; omitted: the preset's, or 100,000.

    Raises:
        ConfigurationError: If algorithm or environment are unknown, or incompatible.
        MissingExtra: If their package is not installed.
    """
    found = find_algorithm(algorithm)
    chosen: dict[str, Any] = {
        "seed": 0,
        "agent": {"algorithm": found.name, "policy": _policy_for(env_id), "hyperparameters": {}},
        "environment": {"id": env_id, "n_envs": 1, "normalize": False},
        "training": {"total_timesteps": DEFAULT_TOTAL_TIMESTEPS},
        "evaluation": {"episodes": 20},
        "checkpoints": {"keep_last": 2},
        "tracking": {"log_interval": 1},
    }
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(found.load()).parameters.items()
        if name not in _OURS and (parameter.default is None or isinstance(parameter.default, bool | int | float | str))
    }
    source = f"the defaults of {found.module}; no tuned settings are known for this pair"
    try:
        chosen = merge(chosen, zoo_preset(found.name, env_id))
        source = "rl_zoo3's tuned settings for this pair"
    except MissingExtra:
        source = (
            f"the defaults of {found.module} (with the extra 'zoo', rl_zoo3's tuned settings are used if there are any)"
        )
    except ConfigurationError:
        pass
    if not chosen["agent"]["hyperparameters"]:
        chosen["agent"]["hyperparameters"] = {
            key: defaults[key] for key in ("learning_rate", "gamma") if key in defaults
        }
    if timesteps is not None:
        chosen["training"]["total_timesteps"] = timesteps
    chosen["training"]["eval_freq"] = max(1, chosen["training"]["total_timesteps"] // 10)
    config = TrainingConfig.from_mapping(chosen, source="the starting configuration")
    check(config)
    head = (
        f"# {found.name} on {env_id}. Train: rltrack train THIS_FILE\n"
        f"# Hyperparameters: {source}.\n"
        "# Lines such as '#key: value' show the default; remove the '#' to set the key.\n"
    )
    return head + "\n".join(_section(TrainingConfig, chosen, {"agent.hyperparameters": defaults})) + "\n"


def _policy_for(env_id: str) -> str:
    """Return the policy class for the environment's observations."""
    from gymnasium import spaces

    env = make_gym_env(env_id)
    try:
        space = env.observation_space
    finally:
        close_all(env)
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if isinstance(space, spaces.Box) and len(space.shape) == 3 else "MlpPolicy"


def _section(
    model: type[BaseModel], chosen: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]], path: str = ""
) -> Iterator[str]:
    """Yield the lines of one section: the chosen keys, and the others commented out, each below its description."""
    indent = "  " * path.count(".")
    for name, field in sorted(
        model.model_fields.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else 99
    ):
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield f"\n{indent}{name}:" + (f"  # {inner.__doc__.partition('.')[0]}." if inner.__doc__ else "")
            yield from _section(inner, chosen.get(name, {}), defaults, f"{path}{name}.")
            continue
        if field.description:
            yield from textwrap.wrap(
                field.description, 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if name in chosen:
            yield from _setting(name, chosen[name], indent)
            for key, value in defaults.get(f"{path}{name}", {}).items():
                if key not in chosen[name]:
                    yield from _setting(key, value, f"{indent}  #")
        else:
            yield from _setting(name, _default_of(field), f"{indent}#")


def _default_of(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _setting(name: str, value: Any, indent: str) -> Iterator[str]:
    """Yield one key with its value, as YAML; a mapping has one line for each key."""
    if isinstance(value, Mapping) and value and not indent.endswith("#"):
        yield f"{indent}{name}:"
        for key, item in value.items():
            yield f"{indent}  {key}: {_flow(item)}"
    else:
        yield f"{indent}{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
