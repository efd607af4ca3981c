"""Evaluation never plays in the training environment: it would end the training's episode, and change what is learned."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rltrack.errors import ConfigurationError


def check_separate(eval_env: object, *training: object) -> None:
    """Refuse an evaluation environment that is a training environment, or that has one inside or is inside one.

    Args:
        eval_env: As given by a user; None or an id is fine.
        training: Environments, vectorised or not, that training steps.

    Raises:
        ConfigurationError: If they share an environment.
    """
    theirs: dict[int, Any] = {}
    for env in training:
        _collect(env, theirs)
    ours: dict[int, Any] = {}
    _collect(eval_env, ours)
    shared = [value for key, value in ours.items() if key in theirs]
    if shared:
        raise ConfigurationError(
            f"eval_env= contains the environment that is trained in ({type(shared[-1]).__name__}): evaluation would end the "
            "training's episodes and change the weights. Pass another instance, or leave eval_env out to have one built."
        )


def _collect(value: object, found: dict[int, Any]) -> None:
    """Add an environment and every one that it holds as an attribute, or in a list or a tuple."""
    if isinstance(value, list | tuple):
        for item in value:
            _collect(item, found)
    elif id(value) not in found and (isinstance(value, gym.Env) or hasattr(type(value), "step_wait")):
        found[id(value)] = value
        for item in list(getattr(value, "__dict__", {}).values()):
            _collect(item, found)
