"""Does a stored policy act as the live one? Both are asked about the same observations, before anything is stored."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from rltrack.agents.exported_policy import ExportedPolicy, tensors_of
from rltrack.agents.policy_description import as_the_policy_sees, describe_policy, other_statistics
from rltrack.agents.protocol import State
from rltrack.agents.random_state import untouched_random_streams
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig

_COUNT, _TURNS, _SEED = 32, 3, 0
_TOLERANCE = 1e-4
"""Of continuous values: on a GPU, the same arithmetic on other memory may round otherwise."""


def checked_description(model: BaseAlgorithm) -> dict[str, Any]:
    """Return how a model's policy is built, if a policy that is built so acts as the model does.

    Returns:
        ``{"reason": why}`` where it cannot be stored as data, or would act differently.
    """
    description = describe_policy(model)
    if "reason" in description:
        return description
    with untouched_random_streams(), other_statistics(model.env) as statistics:
        try:
            weights = {key: value.detach().cpu().numpy() for key, value in model.policy.state_dict().items()}
            plain = json.loads(json.dumps(description))
            policy = ExportedPolicy(plain, tensors_of(plain, weights, statistics), allowed=_own_modules(plain))
            difference = _difference(model, policy)
        except Exception as error:  # whatever a class of the user's raises
            difference = f"it cannot be built again: {' '.join(str(error).split())[:500]}"
    if difference is None:
        return description
    return {
        "format": description["format"],
        "reason": f"Built from its description it does not act as in training: {difference}. A policy can be stored if all that "
        "decides about its actions is in its arguments (policy_kwargs), its state_dict() and the normalisation of observations.",
    }


def difference_from_live(model: BaseAlgorithm, policy: ExportedPolicy) -> str | None:
    """Return how a stored policy's actions differ from a live model's; None if they do not."""
    with untouched_random_streams():
        return _difference(model, policy)


def _own_modules(description: object) -> set[str]:
    """The modules of all classes of a description that this process has just made from them: they run here already."""
    if isinstance(description, Mapping):
        named = [description[key] for key in ("$class", "policy_class") if key in description]
        own = {path.rpartition(".")[0] for path in named}
        return own.union(*(_own_modules(item) for item in description.values()))
    if isinstance(description, list):
        return set().union(*(_own_modules(item) for item in description))
    return set()


def _difference(model: BaseAlgorithm, policy: ExportedPolicy) -> str | None:
    policy.policy.to(model.device)
    generator = np.random.default_rng(_SEED)
    ours: Any = None
    theirs: Any = None
    equal = count = 0
    with _as_it_was(model.policy), _layers(policy.policy) as our_layers, _layers(model.policy) as their_layers:
        for turn in range(_TURNS if policy.is_recurrent else 1):
            raw = sample(policy.observation_space, _COUNT, generator)
            inputs: Any = {"action_masks": _masks(policy.action_space, generator)} if policy.is_masked else {}
            start = np.full(_COUNT, turn == 0)
            seen = as_the_policy_sees(model.env, copy.deepcopy(raw))
            found, ours = policy.predict(raw, state=ours, episode_start=start, **inputs)
            expected, theirs = model.predict(seen, state=theirs, episode_start=start, deterministic=True, **inputs)
            equal += int(_close(found, expected).reshape(_COUNT, -1).all(axis=1).sum())
            count += _COUNT
    if equal != count:
        return f"on {count} observations, {equal} actions are equal"
    for name in our_layers.keys() & their_layers.keys():
        pairs = zip(our_layers[name], their_layers[name], strict=True)
        if not all(one.shape == other.shape and _close(one, other).all() for one, other in pairs):
            return f"on {count} observations, its layer '{name}' gives other values"
    return None


def _close(one: Any, other: Any) -> Any:
    return np.isclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


@contextlib.contextmanager
def _layers(policy: nn.Module) -> Iterator[dict[str, list[np.ndarray]]]:
    """Collect what the linear layers give: two policies may differ long before the best of a few actions does."""
    seen: dict[str, list[np.ndarray]] = {}

    def remember(name: str) -> Any:
        return lambda module, given, output: seen.setdefault(name, []).append(output.detach().cpu().numpy().copy())

    hooks = [
        module.register_forward_hook(remember(name))
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _as_it_was(policy: nn.Module) -> Iterator[None]:
    """Acting puts a policy's parts into evaluation mode; put each of them back."""
    modes = [(module, module.training) for module in policy.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def sample(space: Any, count: int, generator: np.random.Generator) -> Any:
    """Draw observations of a size that occurs: a bound of 1e38 stands for none.

    Args:
        space: Of one observation.
        count: How many.
        generator: Where the numbers come from.

    Returns:
        An array, first axis ``(count,)``; a dictionary of such for a Dict.
    """
    if isinstance(space, spaces.Dict):
        return {key: sample(item, count, generator) for key, item in space.spaces.items()}
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        drawn = generator.normal(0.0, 2.0, (count, *space.shape))
        return np.clip(drawn, space.low, space.high).astype(space.dtype)
    low, high = _ends(space)
    drawn = generator.random((count, *space.shape)) * (np.minimum(high, 1e6) - np.maximum(low, -1e6) + 1) + np.maximum(
        low, -1e6
    )
    return np.floor(drawn).astype(space.dtype)


def _ends(space: Any) -> tuple[Any, Any]:
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    return space.start, space.start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1


def _masks(space: Any, generator: np.random.Generator) -> np.ndarray:
    """Random masks that leave at least one value of each action."""
    if isinstance(space, spaces.Discrete):
        counts = [int(space.n)]
    else:
        counts = (
            [int(n) for n in space.nvec.ravel()]
            if isinstance(space, spaces.MultiDiscrete)
            else [2] * int(np.prod(space.shape))
        )
    masks = generator.random((_COUNT, sum(counts))) < 0.5
    first = np.cumsum([0, *counts[:-1]])
    masks[:, first + generator.integers(0, counts)] = True
    return masks


class LivePolicy:
    """A run's agent with the policy of a version, as its configuration builds it.

    Args:
        config: Of the run.
        state: The version's parts for acting.
    """

    def __init__(self, config: TrainingConfig, state: State) -> None:
        from rltrack.agents import build_for_acting

        threads = torch.get_num_threads()
        try:
            self._agent, self._env = build_for_acting(config)
            self._agent.restore(state)
        finally:
            torch.set_num_threads(threads)

    def description(self) -> dict[str, Any]:
        """Return how its policy is built."""
        return describe_policy(self._agent.model)

    def difference(self, policy: ExportedPolicy) -> str | None:
        """Return how a stored policy's actions differ from it; None if they do not."""
        return difference_from_live(self._agent.model, policy)

    def close(self) -> None:
        """Close its environment."""
        close_all(self._env)
