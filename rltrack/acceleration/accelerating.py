"""The public function."""

from __future__ import annotations

import time
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from rltrack.acceleration.parts import NAMES, Installation
from rltrack.acceleration.report import Part, Report
from rltrack.acceleration.verification import differences
from rltrack.errors import ConfigurationError


def accelerate(model: Any) -> Report:
    """Make a Stable-Baselines3 model train faster, in place, with the same results in every bit.

    ``model.learn()``, callbacks, loggers, ``save`` and ``load`` work as before. What is not recognised exactly, or differs in one
    bit from Stable-Baselines3 on this machine, is left as it is, and the report says so.

    Args:
        model: A model of Stable-Baselines3 or sb3-contrib, with its environments.

    Returns:
        What was accelerated and what was not; its ``undo()`` puts everything back.

    Raises:
        ConfigurationError: If this is no such model, or it has no environments.

    Example:
        >>> model = PPO("MlpPolicy", "CartPole-v1")
        >>> print(rltrack.accelerate(model))
        >>> model.learn(100_000)
    """
    if not isinstance(model, BaseAlgorithm):
        raise ConfigurationError(f"accelerate takes a model of Stable-Baselines3; this is a {type(model).__name__}.")
    if model.env is None:
        raise ConfigurationError(
            "The model has no environments, so that it is not known how it will be trained. Call set_env first."
        )
    begun = time.perf_counter()
    first = Installation(model, {})
    first.undo()
    recognised = set(NAMES) - set(first.reasons)
    off = differences(model, recognised)
    installed = Installation(model, first.reasons | off)
    parts = tuple(Part(name, name not in installed.reasons, installed.reasons.get(name, "")) for name in NAMES)
    return Report(parts, time.perf_counter() - begun, installed.undo)
