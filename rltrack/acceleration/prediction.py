"""`policy.predict`, for training and evaluations alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces


def predictor(
    policy: Any, act: Callable[[torch.Tensor, bool], torch.Tensor], is_watched: Callable[[], bool]
) -> Callable[..., Any]:
    """Return what replaces a policy's `predict`.

    Args:
        policy: A policy of SB3.
        act: Returns actions for a batch of observations, deterministic or drawn.
        is_watched: Returns whether hooks were registered on the policy.
    """
    space, shape = policy.observation_space, policy.observation_space.shape
    is_simple = type(space) is spaces.Box
    action_shape = (-1, *policy.action_space.shape)
    is_box = isinstance(policy.action_space, spaces.Box)

    def predict(
        observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        is_batch = is_simple and type(observation) is np.ndarray and observation.shape[1:] == shape
        if not is_batch or observation.ndim == 0 or is_watched():
            return type(policy).predict(policy, observation, state, episode_start, deterministic)  # type: ignore[no-any-return]
        policy.set_training_mode(False)
        with torch.no_grad():
            actions: Any = act(torch.as_tensor(np.array(observation)), deterministic).numpy().reshape(action_shape)
        if is_box:
            if policy.squash_output:
                actions = policy.unscale_action(actions)
            else:
                actions = np.clip(actions, policy.action_space.low, policy.action_space.high)
        return actions, state

    return predict


def mode_setter(policy: Any) -> Callable[[bool], None]:
    """Return what replaces `set_training_mode`: the same flags of the same modules, without a walk through all of them."""
    states = [vars(module) for module in policy.modules()]
    before = [state["training"] for state in states]
    type(policy).set_training_mode(policy, True)
    trained = [state["training"] for state in states]
    type(policy).set_training_mode(policy, False)
    switched = [state for state, was in zip(states, trained, strict=True) if was and not state["training"]]
    for state, was in zip(states, before, strict=True):
        state["training"] = was

    def set_training_mode(mode: bool) -> None:
        for state in switched:
            state["training"] = mode

    return set_training_mode
