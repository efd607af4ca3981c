"""What a stored policy's description may say besides its spaces: the names of classes, and their arguments.

A description is data that others may have written. So classes are found by exact names on a closed list, or in modules
that the reader allows; everything is checked before anything is built. Like `exported_policy`, this module needs nothing else
of rltrack, and a copy of it lies in every stored model.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .policy_spaces import number_of, shown
else:  # in a stored model, where these files lie side by side
    from policy_spaces import number_of, shown

FORMAT = 2
"""2 keeps the order of the keys of Dict spaces, and the dtype and start of discrete ones."""
ALLOWED_MODULES = "RLTRACK_ALLOWED_MODULES"
"""Environment variable: modules that descriptions of policies, and configurations of deployments, may name; with commas."""

_KEYS = {
    "format": int, "algorithm": str, "policy_class": str, "policy_kwargs": Mapping, "takes_schedule": bool,
    "observation_space": Mapping, "input_space": Mapping, "action_space": Mapping, "normalization": Mapping | None,
    "frame_stack": int | None, "recurrent": bool, "masked": bool,
}  # fmt: skip
_GIVEN_ELSEWHERE = ("self", "observation_space", "action_space", "lr_schedule")
_MAX_DEPTH, _ALWAYS_SMALL = 16, 4096
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")

_CLASSES = {
    "stable_baselines3.common.policies": "ActorCriticPolicy ActorCriticCnnPolicy MultiInputActorCriticPolicy",
    "stable_baselines3.dqn.policies": "DQNPolicy CnnPolicy MultiInputPolicy",
    "stable_baselines3.sac.policies": "SACPolicy CnnPolicy MultiInputPolicy",
    "stable_baselines3.td3.policies": "TD3Policy CnnPolicy MultiInputPolicy",
    "sb3_contrib.ars.policies": "ARSPolicy ARSLinearPolicy",
    "sb3_contrib.crossq.policies": "CrossQPolicy",
    "sb3_contrib.qrdqn.policies": "QRDQNPolicy CnnPolicy MultiInputPolicy",
    "sb3_contrib.tqc.policies": "TQCPolicy CnnPolicy MultiInputPolicy",
    "sb3_contrib.common.maskable.policies": "MaskableActorCriticPolicy MaskableActorCriticCnnPolicy "
    "MaskableMultiInputActorCriticPolicy",
    "sb3_contrib.common.recurrent.policies": "RecurrentActorCriticPolicy RecurrentActorCriticCnnPolicy "
    "RecurrentMultiInputActorCriticPolicy",
    "stable_baselines3.common.torch_layers": "FlattenExtractor NatureCNN CombinedExtractor",
    "torch.nn.modules.activation": "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax "
    "Mish PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmin Softplus Softshrink Softsign Tanh Tanhshrink",
    "torch.nn.modules.linear": "Identity",
    "torch.optim": "Adafactor Muon",
    **{f"torch.optim.{name.lower()}": name for name in (
        "Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
    )},
    "stable_baselines3.common.sb2_compat.rmsprop_tf_like": "RMSpropTFLike",
}  # fmt: skip
_SHARED = ("torch", "stable_baselines3", "sb3_contrib")
KNOWN_CLASSES = frozenset(f"{module}.{name}" for module, names in _CLASSES.items() for name in names.split())
"""What every description may name: SB3's and sb3-contrib's policies and extractors, torch's activations and optimizers."""


class CodeUnavailable(ValueError):
    """A policy names a class that may not be used here, or cannot be imported here; its files may be as they should be."""


def check_description(description: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse a description that does not have the form that rltrack writes.

    Args:
        description: As read from JSON.
        tensors: What is stored with it; integers among the arguments are no larger than a network of these can need.

    Raises:
        ValueError: With the key, what was found, and what is allowed.
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"The policy's description is {shown(description)}, and not a mapping.")
    version = description.get("format")
    if type(version) is int and version > FORMAT:
        raise ValueError(f"The policy has format {version}, this code reads up to {FORMAT}. Install a newer rltrack.")
    if description.keys() != _KEYS.keys():
        differing = sorted(map(str, description.keys() ^ _KEYS.keys()))
        raise ValueError(f"Keys of the policy's description that are missing or unknown: {', '.join(differing)[:300]}.")
    for key, kind in _KEYS.items():
        value = description[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"'{key}' in the policy's description is {shown(value)}.")
    if description["format"] < 1:
        raise ValueError(f"The policy has format {version}; known: 1 to {FORMAT}.")
    normalization = description["normalization"]
    if normalization is not None and normalization.keys() != {"epsilon", "clip"}:
        raise ValueError(
            f"'normalization' in the policy's description is {shown(normalization)}; it holds epsilon and clip."
        )
    if normalization is not None and not all(number_of(value) > 0 for value in normalization.values()):
        raise ValueError(f"'normalization' in the policy's description is {shown(normalization)}; both are above 0.")
    sizes = [size for tensor in tensors.values() if tensor.size for size in tensor.shape]
    limit = max(_ALWAYS_SMALL, len(tensors), *sizes)
    extractor = description["policy_kwargs"].get("features_extractor_class")
    own_extractor = isinstance(extractor, Mapping) and extractor.get("$class") not in KNOWN_CLASSES
    own_policy = description["policy_class"] not in KNOWN_CLASSES
    for key, value in description["policy_kwargs"].items():
        is_own = own_policy or (
            own_extractor and key == "features_extractor_kwargs"
        )  # of classes that the reader allows
        _check_argument(value, f"policy_kwargs.{key}", math.inf if is_own else limit)


def _check_argument(value: Any, where: str, limit: float, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where[:100]} in the policy's description is nested more than {_MAX_DEPTH} deep.")
    if value is None or isinstance(value, bool | str):
        return
    if isinstance(value, int | float):
        if not abs(value) <= limit:
            raise ValueError(
                f"{where} in the policy's description is {shown(value)}; numbers up to {limit} are allowed."
            )
    elif isinstance(value, list):
        for item in value:
            _check_argument(item, where, limit, depth + 1)
    elif isinstance(value, Mapping) and any(key.startswith("$") for key in value):
        [(key, item)] = value.items() if len(value) == 1 else [("", None)]
        if not (key == "$class" and isinstance(item, str)) and not (key == "$tuple" and isinstance(item, list)):
            raise ValueError(f"{where} in the policy's description is {shown(value)}, neither a class nor a tuple.")
        _check_argument(item, where, limit, depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_argument(item, f"{where}.{key}", limit, depth + 1)
    else:
        raise ValueError(f"{where} in the policy's description is {shown(value)}, which is no plain data.")


def arguments_of(policy_class: Any, description: Mapping[str, Any], allowed: Collection[str] = ()) -> dict[str, Any]:
    """Return the arguments of a policy's class besides its spaces and its schedule.

    Raises:
        ValueError: If the class does not take one of them.
    """
    known = inspect.signature(policy_class.__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key in description["policy_kwargs"]:
        if key in _GIVEN_ELSEWHERE or (key not in known and not takes_all):
            raise ValueError(f"{description['policy_class']} takes no argument '{key[:100]}' from a description.")
    return {key: _decoded(value, allowed) for key, value in description["policy_kwargs"].items()}


def _decoded(value: Any, allowed: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, allowed) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "$class" in value:
        return find_class(value["$class"], allowed)
    if "$tuple" in value:
        return tuple(_decoded(item, allowed) for item in value["$tuple"])
    return {key: _decoded(item, allowed) for key, item in value.items()}


def find_class(path: Any, allowed: Collection[str] = ()) -> Any:
    """Return a part of a policy by its exact dotted name; its module is imported only if the name may be used.

    Args:
        path: On the closed list, or in a module that RLTRACK_ALLOWED_MODULES names.
        allowed: Further modules, which the caller trusts.

    Raises:
        CodeUnavailable: If the name may not be used, or its module cannot be imported.
        ValueError: If what is there is no part of a network that is defined under this name.
    """
    if not isinstance(path, str) or not _NAME.fullmatch(path):
        raise ValueError(f"The policy names the class {shown(path)}, which is not of the form package.module.Class.")
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    own = [item.strip() for item in os.environ.get(ALLOWED_MODULES, "").split(",") if item.strip()]
    if path not in KNOWN_CLASSES and not any(
        module == item or module.startswith(f"{item}.") for item in (*own, *allowed)
    ):
        raise CodeUnavailable(
            f"The policy uses {path}, and loading it would run the code of '{module}'. If you trust that module, set "
            f"{ALLOWED_MODULES}={module if package in _SHARED else package} and load it again."
        )
    from torch import nn, optim

    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise CodeUnavailable(
            f"The policy uses {path}, which cannot be imported: {type(error).__name__}: {error}."
        ) from error
    if (
        not isinstance(found, type)
        or f"{found.__module__}.{found.__qualname__}" != path
        or not issubclass(found, nn.Module | optim.Optimizer)
    ):
        raise ValueError(f"The policy uses {path}, which is not a torch module or optimizer that '{module}' defines.")
    return found
