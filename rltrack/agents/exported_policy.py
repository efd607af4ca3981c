"""A policy as files, and back: what a model registry keeps and a server loads.

``policy.json`` says how the policy is built, ``policy.safetensors`` holds its weights and normalisation statistics. Reading
them runs no pickle. This module needs nothing else of rltrack: a copy of it lies in every stored model, so that a server
needs Stable-Baselines3 and not rltrack.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

FORMAT = 1
DESCRIPTION, TENSORS = "policy.json", "policy.safetensors"
ALLOWED_MODULES = "RLTRACK_ALLOWED_MODULES"
"""Environment variable: modules that descriptions of policies, and configurations of deployments, may name; with commas."""

_KNOWN_MODULES = ("torch", "stable_baselines3", "sb3_contrib")
_STATISTICS, _WEIGHTS = "statistics/", "weights/"


def write_policy(
    folder: Path, description: Mapping[str, Any], weights: Mapping[str, Any], normalization: Mapping[str, Any] | None
) -> None:
    """Write a policy.

    Args:
        folder: An existing folder.
        description: How it is built, as plain data (`rltrack.agents.policy_description`).
        weights: Arrays by the names of the policy's parameters.
        normalization: ``observations`` with ``mean``, ``var`` and ``count``, or such by key; None without any.
    """
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2))
    tensors = {f"{_WEIGHTS}{name}": np.ascontiguousarray(value) for name, value in weights.items()}
    observations = (normalization or {}).get("observations")
    if description["normalization"] is not None and observations is not None:
        by_key = {"": observations} if "mean" in observations else observations
        for key, found in by_key.items():
            for name in ("mean", "var"):
                tensors[f"{_STATISTICS}{name}/{key}"] = np.ascontiguousarray(found[name])
    save_file(tensors, folder / TENSORS)


class ExportedPolicy:
    """A policy that acts on observations as the environment gives them, exactly as the model acted that it came from.

    Args:
        description: How it is built.
        tensors: Weights and statistics, as in the file.

    Raises:
        ValueError: If the description is of a newer format, or names a module that is not allowed.
    """

    def __init__(self, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        import torch

        if description["format"] > FORMAT:
            raise ValueError(
                f"The policy has format {description['format']}, this code reads up to {FORMAT}. Install a newer rltrack."
            )
        self.description = description
        self.observation_space = space_of(description["input_space"])
        self.action_space = space_of(description["action_space"])
        self.is_recurrent = bool(description["recurrent"])
        self.is_masked = bool(description["masked"])
        self.policy: Any = _build(description)
        weights = {
            name.removeprefix(_WEIGHTS): torch.from_numpy(np.array(value))
            for name, value in tensors.items()
            if name.startswith(_WEIGHTS)
        }
        self.policy.load_state_dict(weights)
        self.policy.set_training_mode(False)
        self._statistics = {
            name.removeprefix(f"{_STATISTICS}mean/"): (value, tensors[name.replace("/mean/", "/var/", 1)])
            for name, value in tensors.items()
            if name.startswith(f"{_STATISTICS}mean/")
        }

    @classmethod
    def load(cls, folder: str | Path) -> ExportedPolicy:
        """Read a policy from its folder."""
        path = Path(folder)
        return cls(json.loads((path / DESCRIPTION).read_text()), load_file(path / TENSORS))

    def predict(
        self,
        observation: Any,
        *,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        **inputs: Any,
    ) -> tuple[Any, Any]:
        """Return actions and the next recurrent state.

        Args:
            observation: Raw observations, first axis ``(n,)``; a dictionary of such where the space is one.
            state: What the previous call returned; None at the start.
            episode_start: Whether an episode begins with this observation, bool, shape ``(n,)``.
            deterministic: Act by the policy's mode.
            inputs: ``action_masks``, for policies that use them.
        """
        normalized = self._normalize(observation)
        actions, state = self.policy.predict(
            normalized, state=state, episode_start=episode_start, deterministic=deterministic, **inputs
        )
        return actions, state

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one recurrent state: hidden and cell, layers, units."""
        layers, _, units = self.policy.lstm_hidden_state_shape
        return (2, layers, units)

    def _normalize(self, observation: Any) -> Any:
        if not self._statistics:
            return observation
        if isinstance(observation, Mapping):
            return {
                key: self._standardized(value, key) if key in self._statistics else value
                for key, value in observation.items()
            }
        return self._standardized(observation, "")

    def _standardized(self, value: Any, key: str) -> np.ndarray:
        """As SB3's VecNormalize does, operation by operation."""
        mean, var = self._statistics[key]
        settings = self.description["normalization"]
        clip = settings["clip"]
        scaled = np.clip((np.asarray(value) - mean) / np.sqrt(var + settings["epsilon"]), -clip, clip)
        return np.asarray(scaled.astype(np.float32))


def space_of(data: Mapping[str, Any]) -> Any:
    """Return the Gymnasium space that a description stands for."""
    from gymnasium import spaces

    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict({key: space_of(item) for key, item in data["spaces"].items()})
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (np.broadcast_to(np.array(_numbers(data[side]), dtype=dtype), shape) for side in ("low", "high"))
        return spaces.Box(low.copy(), high.copy(), dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(data["nvec"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    raise ValueError(f"Unknown space '{kind}' in a policy's description.")


def _numbers(value: Any) -> Any:
    """Infinities are written as text, since JSON has none."""
    return [_numbers(item) for item in value] if isinstance(value, list) else float(value)


def _build(description: Mapping[str, Any]) -> Any:
    policy_class = find_class(description["policy_class"])
    arguments = _decoded(description["policy_kwargs"])
    rest = [lambda _: 0.0] if description["takes_schedule"] else []
    return policy_class(
        space_of(description["observation_space"]), space_of(description["action_space"]), *rest, **arguments
    )


def find_class(path: str) -> Any:
    """Import a class by its dotted name, from torch, SB3, or a module that RLTRACK_ALLOWED_MODULES names.

    Raises:
        ValueError: If its module is not allowed.
    """
    module, _, name = path.rpartition(".")
    own = [item.strip() for item in os.environ.get(ALLOWED_MODULES, "").split(",") if item.strip()]
    if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in (*_KNOWN_MODULES, *own)):
        raise ValueError(
            f"The policy uses {path}, and loading it would run the code of '{module}'. If you trust that module, set "
            f"{ALLOWED_MODULES}={module.partition('.')[0]} and load it again."
        )
    return getattr(importlib.import_module(module), name)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$class" in value:
        return find_class(value["$class"])
    if "$tuple" in value:
        return tuple(_decoded(item) for item in value["$tuple"])
    return {key: _decoded(item) for key, item in value.items()}
