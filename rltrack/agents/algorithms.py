"""Algorithms by name, the action spaces they support, and their arguments read from plain data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

from rltrack.algorithms import TABLE, Algorithm
from rltrack.errors import ConfigurationError, did_you_mean
from rltrack.named_code import is_code_name, resolve
from rltrack.secrets import shown

_OURS = {"self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}


def load_class(algorithm: Algorithm) -> type[Any]:
    """Import an algorithm's class.

    Raises:
        ConfigurationError: If a named class is not there, or is not an algorithm of Stable-Baselines3.
        MissingExtra: If the package that has it is not installed.
    """
    found = algorithm.load()
    if is_code_name(algorithm.name):
        from stable_baselines3.common.base_class import BaseAlgorithm

        if not (inspect.isclass(found) and issubclass(found, BaseAlgorithm)):
            raise ConfigurationError(
                f"agent.algorithm: '{algorithm.name}' is not a subclass of stable_baselines3's BaseAlgorithm."
            )
    return found


def check_action_space(algorithm: Algorithm, space: object, environment: str) -> None:
    """Refuse an algorithm that cannot act in this space.

    Raises:
        ConfigurationError: With the algorithms that can.
    """
    kind = type(space).__name__
    if algorithm.actions and kind not in algorithm.actions:
        able = [item.name for item in TABLE if kind in item.actions]
        raise ConfigurationError(
            f"{algorithm.name} supports the action spaces {', '.join(algorithm.actions)}, but {environment} has {space}. "
            + (f"Algorithms for {kind}: {', '.join(able)}." if able else f"No algorithm here supports {kind}.")
        )


_INSTEAD = {
    "Text": "a fixed number of codes: MultiDiscrete",
    "Sequence": "a Box of the greatest length, padded, with the length in another field",
    "Graph": "a Dict of Boxes: nodes, edges and links, filled up to a greatest number",
    "Tuple": "a Dict with a name for each part",
    "OneOf": "a Dict with a Discrete that says which, and every alternative",
    "Dict": "one flat Dict: gymnasium.wrappers.FlattenObservation, or keys such as 'arm/angle'",
}
_SIMPLE = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")


def check_observation_space(space: Any, environment: str) -> None:
    """Refuse observations that no policy of Stable-Baselines3 takes.

    Raises:
        ConfigurationError: With the space, and what to use instead.
    """
    named = space.spaces.items() if type(space).__name__ == "Dict" else [("", space)]
    for key, part in named:
        kind = type(part).__name__
        if kind in _SIMPLE or any(base.__name__ in _SIMPLE for base in type(part).__mro__):
            continue
        where = f" under '{key}'" if key else ""
        raise ConfigurationError(
            f"{environment} observes a {kind}{where}: {shown(part)}. Policies take {', '.join(_SIMPLE)}, or a Dict of these. "
            f"Use instead {_INSTEAD.get(kind, 'a Box')}, with a wrapper in environment.wrappers or in the environment itself."
        )


class LinearSchedule:
    """Fall in a straight line from `start` to `end` over the whole budget.

    Never below `end`: where the last iteration overshoots the budget, the remaining progress that Stable-Baselines3
    passes is negative, and a learning rate must not be.
    """

    def __init__(self, start: float, end: float = 0.0) -> None:
        self.start = float(start)
        self.end = float(end)

    def __call__(self, remaining: float) -> float:
        """Return the value when the fraction `remaining` of the budget is left."""
        return self.end + max(remaining, 0.0) * (self.start - self.end)

    def __repr__(self) -> str:
        return f"LinearSchedule({self.start}, {self.end})"


class ScaledSchedule:
    """Another schedule times a factor, which the ADAPTIVE strategy lowers."""

    def __init__(self, schedule: Callable[[float], float], factor: float) -> None:
        self.schedule = schedule
        self.factor = factor

    def __call__(self, remaining: float) -> float:
        """Return the scaled value."""
        return self.factor * self.schedule(remaining)


def model_arguments(
    algorithm: Algorithm, model_class: type[Any], given: Mapping[str, object], action_space: object
) -> dict[str, object]:
    """Turn hyperparameters written as data into arguments of the algorithm's class.

    Raises:
        ConfigurationError: If one is unknown to the algorithm or cannot be read.
    """
    allowed = [name for name in inspect.signature(model_class.__init__).parameters if name not in _OURS]
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        if key not in allowed:
            raise ConfigurationError(
                f"{algorithm.name} has no hyperparameter '{key}'.{did_you_mean(key, allowed)} "
                f"Allowed: {', '.join(sorted(allowed))}."
            )
        value = resolve(value, f"agent.hyperparameters.{key}")
        reader = _READERS.get(key)
        if reader is None:
            _check_kind(algorithm, model_class, key, value)
        arguments[key] = reader(value, action_space) if reader else _plain(key, value)
    return arguments


def _check_kind(algorithm: Algorithm, model_class: type[Any], key: str, value: object) -> None:
    """Refuse a text where the algorithm's own annotation has none: it would fail deep inside the first update."""
    if not isinstance(value, str):
        return
    hint = inspect.signature(model_class.__init__).parameters[key].annotation
    if isinstance(hint, str) or hint is inspect.Parameter.empty:
        return  # an annotation that only a type checker can resolve
    kinds = [hint, *get_args(hint)]
    if Any not in kinds and str not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds if isinstance(kind, type)) or str(hint)
        raise ConfigurationError(f"Hyperparameter '{key}' is {value!r}, a text; {algorithm.name} wants {wanted}.")


def _plain(key: str, value: object) -> Any:
    if isinstance(value, Mapping) and set(value) == {"linear"}:
        points = value["linear"] if isinstance(value["linear"], list) else [value["linear"]]
        if not 1 <= len(points) <= 2 or not all(isinstance(p, int | float) and not isinstance(p, bool) for p in points):
            raise ConfigurationError(
                f"Schedule of '{key}': {dict(value)!r}. Write {{linear: 0.001}} or {{linear: [0.001, 0.0001]}}."
            )
        return LinearSchedule(*points)
    if isinstance(value, Mapping) and "linear" not in value and key.endswith(("rate", "range")):
        raise ConfigurationError(f"Schedule of '{key}': {dict(value)!r}. Known schedules: linear.")
    return value


def _action_noise(value: object, space: Any) -> Any:
    import numpy as np
    from stable_baselines3.common import noise

    if value is None or isinstance(value, noise.ActionNoise):
        return value
    kinds = {"normal": noise.NormalActionNoise, "ornstein-uhlenbeck": noise.OrnsteinUhlenbeckActionNoise}
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in kinds:
        raise ConfigurationError(
            f"action_noise: {value!r}. Write {{normal: 0.1}} or {{ornstein-uhlenbeck: 0.1}} (standard deviation), or "
            "{package.module:Name: {argument: value}} for one of your own."
        )
    kind, std = next(iter(value.items()))
    size = space.shape[-1]
    return kinds[kind](mean=np.zeros(size), sigma=float(std) * np.ones(size))


def _policy_kwargs(value: Any, _: object) -> Any:
    from torch import nn, optim

    read = dict(value or {})
    for key, module, what in (("activation_fn", nn, "torch.nn"), ("optimizer_class", optim, "torch.optim")):
        name = read.get(key)
        if isinstance(name, str):
            if name == "RMSpropTFLike":
                from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

                read[key] = RMSpropTFLike
                continue
            found = getattr(module, name, None)
            if not inspect.isclass(found):
                near = did_you_mean(name, [item for item in dir(module) if item[0].isupper()])
                raise ConfigurationError(
                    f"policy_kwargs.{key}: {what} has no class '{name}'.{near} Or write package.module:Class for one of your own."
                )
            read[key] = found
    for key in ("features_extractor_class", "optimizer_class"):
        if isinstance(read.get(key), str):
            raise ConfigurationError(
                f"policy_kwargs.{key} is the text '{read[key]}'. Write package.module:Class, for example "
                "stable_baselines3.common.torch_layers:NatureCNN."
            )
    return read


def _replay_buffer_class(value: object, _: object) -> Any:
    if not isinstance(value, str):
        return value
    from stable_baselines3 import HerReplayBuffer
    from stable_baselines3.common import buffers

    known = {"HerReplayBuffer": HerReplayBuffer, "ReplayBuffer": buffers.ReplayBuffer,
             "DictReplayBuffer": buffers.DictReplayBuffer}  # fmt: skip
    if value not in known:
        raise ConfigurationError(
            f"replay_buffer_class: unknown '{value}'. Allowed: {', '.join(known)}, or package.module:Class."
        )
    return known[value]


_READERS: dict[str, Callable[[Any, Any], Any]] = {
    "train_freq": lambda value, _: tuple(value) if isinstance(value, list) else value,
    "action_noise": _action_noise,
    "policy_kwargs": _policy_kwargs,
    "replay_buffer_class": _replay_buffer_class,
    "replay_buffer_kwargs": lambda value, _: dict(value or {}),
}
