"""The tuned settings of the ``rl_zoo3`` package, read as data.

The package ships one YAML file per algorithm. Some values are strings that rl_zoo3 evaluates as Python; only the few
forms that occur are read here (``lin_0.001``, ``dict(…)``, ``nn.ReLU``), and nothing is ever evaluated or imported.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

from rltrack.algorithms import find_algorithm
from rltrack.errors import ConfigurationError, MissingExtra, did_you_mean
from rltrack.plain_data import read_yaml

_STEMS = {"RecurrentPPO": "ppo_lstm"}
_SUBPACKAGE_PREFIXES = ("nn.", "th.nn.", "torch.nn.")


def zoo_preset(algorithm_name: str, env_id: str) -> dict[str, Any]:
    """Return the tuned settings for an algorithm and environment, in the shape of a configuration.

    Raises:
        MissingExtra: If ``rl_zoo3`` is not installed.
        ConfigurationError: If it has no preset for this pair, or one that cannot be expressed here.
    """
    algorithm = find_algorithm(algorithm_name)
    folder, stem = zoo_folder("preset: zoo") / "hyperparams", zoo_stem(algorithm.name)
    file = folder / f"{stem}.yml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yml")))
        raise ConfigurationError(f"rl_zoo3 has no presets for {algorithm.name}. It has: {known}.")
    presets = read_yaml(file)
    raw = presets.get(env_id)
    if raw is None and "NoFrameskip" in env_id:
        raw = presets.get("atari")
    if raw is None:
        names = sorted(name for name in presets if name != "default")
        raise ConfigurationError(
            f"rl_zoo3 has no {algorithm.name} preset for {env_id}.{did_you_mean(env_id, names)} It has: {', '.join(names)}."
        )
    try:
        return translate(algorithm.name, env_id, raw)
    except ConfigurationError:
        raise
    except Exception as error:  # whatever is not of the forms that rl_zoo3 writes
        raise ConfigurationError(
            f"rl_zoo3's preset of {algorithm.name} for {env_id} cannot be read as data: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}. Copy its settings into a file of your own."
        ) from None


def translate(algorithm: str, env_id: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Turn one of rl_zoo3's entries into the shape of a configuration."""
    values = {key: _read(value) for key, value in raw.items()}
    for unsupported in ("callback", "vec_env_wrapper", "monitor_kwargs"):
        if values.get(unsupported):
            raise ConfigurationError(
                f"rl_zoo3's preset of {algorithm} for {env_id} uses '{unsupported}': {values[unsupported]!r}, which a "
                "configuration cannot express. Copy its other settings into a file of your own."
            )
        values.pop(unsupported, None)
    environment: dict[str, Any] = {"n_envs": int(values.pop("n_envs", 1))}
    normalize = values.pop("normalize", False)
    if normalize:
        environment["normalize"] = normalize
    wrappers = values.pop("env_wrapper", None)
    if wrappers:
        listed = wrappers if isinstance(wrappers, list) else [wrappers]
        environment["wrappers"] = [
            {name: arguments or {} for name, arguments in item.items()} if isinstance(item, dict) else item
            for item in listed
        ]
        environment["wrappers_inside_monitor"] = False  # rl_zoo3's order: equal settings give equal numbers
    if values.get("frame_stack"):
        environment["frame_stack"] = int(values["frame_stack"])
    values.pop("frame_stack", None)
    if values.get("env_kwargs"):
        environment["kwargs"] = values["env_kwargs"]
    values.pop("env_kwargs", None)
    noise_type, noise_std = values.pop("noise_type", None), values.pop("noise_std", None)
    if noise_type is not None:
        values["action_noise"] = {str(noise_type).strip(): float(noise_std)}
    if algorithm == "ARS":
        environment["n_envs"] = 1  # rl_zoo3 spreads its candidates over processes and trains in one environment
    training = {"total_timesteps": int(values.pop("n_timesteps"))} if "n_timesteps" in values else {}
    policy = values.pop("policy", "MlpPolicy")
    return {
        "agent": {"algorithm": algorithm, "policy": policy, "hyperparameters": values},
        "environment": environment,
        "training": training,
    }


def _read(value: Any) -> Any:
    """Read a value, and the few forms of code that occur in strings."""
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, dict):
        return {key: _read(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"lin_[0-9.eE+-]+", value):
        return {"linear": float(value[4:])}
    text = value.strip()
    if text.startswith(("dict(", "{", "[")):
        return _literal(ast.parse(text, mode="eval").body)
    return text


def _literal(node: ast.expr) -> Any:
    """Read literals, ``dict(key=value)`` and class names such as ``nn.ReLU`` (as text)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(item.arg): _literal(item.value) for item in node.keywords}
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Attribute | ast.Name):
        name = ast.unparse(node)
        return next((name.removeprefix(p) for p in _SUBPACKAGE_PREFIXES if name.startswith(p)), name)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ConfigurationError(f"Cannot read {ast.unparse(node)!r} in rl_zoo3's presets as data.") from None


def zoo_stem(algorithm: str) -> str:
    """Return rl_zoo3's name for an algorithm of ours."""
    return _STEMS.get(algorithm, algorithm.lower())


def zoo_folder(setting: str) -> Path:
    """Return the folder of the rl_zoo3 package, without importing it.

    Args:
        setting: What asks for it, for the error.

    Raises:
        MissingExtra: If it is not installed.
    """
    spec = importlib.util.find_spec("rl_zoo3")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(
            f"{setting} reads from the package 'rl_zoo3', which is not installed. Install it with: pip install 'rltrack[zoo]'."
        )
    return Path(next(iter(spec.submodule_search_locations)))
