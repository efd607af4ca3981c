"""A policy as files, and back: what a model registry keeps and a server loads.

``policy.json`` says how the policy is built, ``policy.safetensors`` holds its weights and normalisation statistics. Reading
them runs no pickle, and no code but that of names on a closed list (`policy_data`). This module needs nothing else of rltrack:
copies of it and of what it imports lie in every stored model, so that a server needs Stable-Baselines3 and not rltrack.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING or __package__:
    from .policy_data import ALLOWED_MODULES, arguments_of, check_description, find_class
    from .policy_spaces import number_of, space_of
else:  # in a stored model, where these files lie side by side
    from policy_data import ALLOWED_MODULES, arguments_of, check_description, find_class
    from policy_spaces import number_of, space_of

__all__ = [
    "ALLOWED_MODULES",
    "DESCRIPTION",
    "TENSORS",
    "ExportedPolicy",
    "find_class",
    "space_of",
    "tensors_of",
    "write_policy",
]

DESCRIPTION, TENSORS = "policy.json", "policy.safetensors"

_STATISTICS, _WEIGHTS = "statistics/", "weights/"
_MAX_BYTES = 100_000_000
"""Of a description; the bounds of the largest space that is allowed take about as much."""


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
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
    save_file(tensors_of(description, weights, normalization), folder / TENSORS)


def tensors_of(
    description: Mapping[str, Any], weights: Mapping[str, Any], normalization: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """Return weights and statistics by the names under which they are stored."""
    tensors = {f"{_WEIGHTS}{name}": np.ascontiguousarray(value) for name, value in weights.items()}
    observations = (normalization or {}).get("observations")
    if description["normalization"] is not None and observations is not None:
        by_key = (
            observations if all(isinstance(found, Mapping) for found in observations.values()) else {"": observations}
        )
        for key, found in by_key.items():
            for name in ("mean", "var"):
                tensors[f"{_STATISTICS}{name}/{key}"] = np.ascontiguousarray(found[name])
    return tensors


class ExportedPolicy:
    """A policy that acts on observations as the environment gives them, exactly as the model acted that it came from.

    Args:
        description: How it is built.
        tensors: Weights and statistics, as in the file.
        allowed: Modules that the caller trusts, in addition to those that RLTRACK_ALLOWED_MODULES names.

    Raises:
        ValueError: If the description is of a newer format, is not of the form that rltrack writes, names a class that is not
            allowed, or does not fit the tensors.
    """

    def __init__(
        self, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, allowed: Collection[str] = ()
    ) -> None:
        check_description(description, tensors)
        self.description = description
        self.observation_space = space_of(description["input_space"])
        self.action_space = space_of(description["action_space"])
        self.is_recurrent: bool = description["recurrent"]
        self.is_masked: bool = description["masked"]
        self._statistics = _statistics_of(description, tensors, self.observation_space)
        weights = {name.removeprefix(_WEIGHTS): value for name, value in tensors.items() if name.startswith(_WEIGHTS)}
        try:
            self.policy: Any = _build(description, weights, allowed)
        except ValueError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:500]
            raise ValueError(
                f"The policy cannot be built as it is described: {type(error).__name__}: {text}"
            ) from error

    @classmethod
    def load(cls, folder: str | Path) -> ExportedPolicy:
        """Read a policy from its folder.

        Raises:
            ValueError: If it is not as rltrack writes it.
            FileNotFoundError: If a file is missing.
        """
        path = Path(folder)
        if (path / DESCRIPTION).stat().st_size > _MAX_BYTES:
            raise ValueError(f"{DESCRIPTION} is larger than {_MAX_BYTES} bytes.")
        try:
            description, tensors = (
                json.loads((path / DESCRIPTION).read_text(encoding="utf-8")),
                load_file(path / TENSORS),
            )
        except (OSError, ValueError):
            raise
        except Exception as error:  # safetensors' own error, or a nesting that is too deep for Python
            raise ValueError(f"The policy's files cannot be read: {type(error).__name__}: {error}") from error
        return cls(description, tensors)

    def predict(
        self,
        observation: object,
        *,
        state: object = None,
        episode_start: object = None,
        deterministic: bool = True,
        **inputs: object,
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

    def copy_to(self, model: Any) -> None:
        """Overwrite weights and normalisation statistics of an SB3 model that was built as this policy's was."""
        model.policy.load_state_dict(self.policy.state_dict())
        if not self._statistics:
            return
        observed = model.get_vec_normalize_env().obs_rms
        for key, rms in observed.items() if isinstance(observed, dict) else {"": observed}.items():
            rms.mean, rms.var = (np.array(value) for value in self._statistics[key])

    @property
    def has_keys(self) -> bool:
        """Whether observations are dictionaries."""
        return hasattr(self.observation_space, "spaces")

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one recurrent state: hidden and cell, layers, units."""
        layers, _, units = self.policy.lstm_hidden_state_shape
        return (2, layers, units)

    def _normalize(self, observation: object) -> Any:
        if not self._statistics:
            return observation
        if isinstance(observation, Mapping):
            return {
                key: self._standardized(value, key) if key in self._statistics else value
                for key, value in observation.items()
            }
        return self._standardized(observation, "")

    def _standardized(self, value: object, key: str) -> np.ndarray:
        """As SB3's VecNormalize does, operation by operation."""
        mean, var = self._statistics[key]
        settings = self.description["normalization"]
        clip = number_of(settings["clip"])
        scaled = np.clip((np.asarray(value) - mean) / np.sqrt(var + number_of(settings["epsilon"])), -clip, clip)
        return np.asarray(scaled.astype(np.float32))


def _statistics_of(
    description: Mapping[str, object], tensors: Mapping[str, np.ndarray], space: object
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance by the keys of the observations; without keys, under an empty one."""
    found = {name: value for name, value in tensors.items() if not name.startswith(_WEIGHTS)}
    shapes = {key: item.shape for key, item in getattr(space, "spaces", {"": space}).items()}
    keys = [name.removeprefix(f"{_STATISTICS}mean/") for name in found if name.startswith(f"{_STATISTICS}mean/")]
    for key in keys:
        for name in (f"{_STATISTICS}mean/{key}", f"{_STATISTICS}var/{key}"):
            value = found.get(name)
            if value is None or value.shape != shapes.get(key) or value.dtype.kind != "f":
                raise ValueError(
                    f"The policy's statistics '{name}' are missing, or do not fit its observations {space}."
                )
    if len(found) != 2 * len(keys) or (found and description["normalization"] is None):
        raise ValueError(f"Tensors that do not belong to the policy: {', '.join(sorted(found))[:300]}.")
    return {key: (found[f"{_STATISTICS}mean/{key}"], found[f"{_STATISTICS}var/{key}"]) for key in keys}


def _build(description: Mapping[str, object], weights: Mapping[str, np.ndarray], allowed: Collection[str]) -> Any:
    """Let SB3 build the policy, and fill in its weights."""
    import torch
    from stable_baselines3.common.policies import BasePolicy

    policy_class = find_class(description["policy_class"], allowed)
    if not issubclass(policy_class, BasePolicy):
        raise ValueError(f"The policy's class {description['policy_class']} is none of Stable-Baselines3's policies.")
    arguments = arguments_of(policy_class, description, allowed)
    rest = [lambda _: 0.0] if description["takes_schedule"] else []
    spaces = (space_of(description["observation_space"]), space_of(description["action_space"]))
    with _no_more_parameters_than(2 * sum(value.size for value in weights.values()) + 100_000):
        policy = policy_class(*spaces, *rest, **arguments)
    policy.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    policy.set_training_mode(False)
    is_masked = "action_masks" in inspect.signature(policy.predict).parameters
    if (hasattr(policy, "lstm_hidden_state_shape"), is_masked) != (description["recurrent"], description["masked"]):
        raise ValueError(f"{description['policy_class']} is not recurrent or masked as the policy's description says.")
    return policy


@contextlib.contextmanager
def _no_more_parameters_than(limit: int) -> Iterator[None]:
    """Refuse a network that is much larger than what is stored of it, before its memory is written to."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread, count = threading.get_ident(), 0

    def add(module: object, name: str, parameter: Any) -> None:
        nonlocal count
        if parameter is not None and threading.get_ident() == thread:
            count += parameter.numel()
            if count > limit:
                raise ValueError(
                    "The policy's description asks for a larger network than the one whose weights are stored."
                )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()
