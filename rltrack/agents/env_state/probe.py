"""Find out, on two scratch copies, how an environment can be captured so that it continues as if nothing had happened.

One copy plays through some episodes, is taken, and plays on. The other, played elsewhere before, gets that state and the
same actions. Only where every observation, reward and flag has the same bits is a method good.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from rltrack.agents.env_state import layers
from rltrack.agents.env_state.recorder import digest, record
from rltrack.agents.gym_types import Env
from rltrack.agents.random_state import capture_random, restore_random, untouched_random_streams
from rltrack.cleanup import close_all
from rltrack.errors import NotCapturable, ResumeMismatch

_BEFORE, _AFTER, _ELSEWHERE = 25, 30, 40
"""Env steps of the episode before its state is taken, after it, and of the other copy."""
_HISTORY, _HISTORY_SECONDS = 300, 0.3
"""Env steps of earlier episodes, at most, and seconds: a reset that does not reset everything shows only after some."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found.

    Attributes:
        method: A name in ``layers.METHODS``; None where none works.
        reasons: Why the methods before it do not work, in words.
    """

    method: str | None
    reasons: tuple[str, ...]


def candidates(core: object) -> tuple[str, ...]:
    """Return the methods worth trying, best first."""
    return (*(["own"] if layers.has_own_state(core) else []), "attributes", "replay")


def probe(build: Callable[[], Env]) -> Finding:
    """Try the methods on two copies of an environment; random streams of this process stay as they are.

    Args:
        build: Builds a copy, wrapped as in training.

    Raises:
        Exception: Whatever building, resetting or stepping raises.
    """
    with untouched_random_streams():
        copies: list[Env] = []
        try:
            copies.append(build())
            copies.append(build())
            one, other = copies
            for env in (one, other):
                record(env.unwrapped)
            actions = _actions(one, _BEFORE + _AFTER + _ELSEWHERE)
            reasons: list[str] = []
            for method in candidates(one.unwrapped):
                try:
                    if _works(method, one, other, actions):
                        return Finding(method, tuple(reasons))
                    reasons.append(f"{method}: a copy that took over the state went on differently")
                except (NotCapturable, ResumeMismatch) as error:
                    reasons.append(f"{method}: {error}")
            return Finding(None, tuple(reasons))
        finally:
            close_all(*copies)


def _works(method: str, one: Env, other: Env, actions: Sequence[object]) -> bool:
    first, second = list(layers.gym_layers(one)), list(layers.gym_layers(other))
    one.reset(seed=1)
    until = time.monotonic() + _HISTORY_SECONDS
    for index in range(_HISTORY):
        _play(one, [actions[index % len(actions)]])
        if time.monotonic() > until:
            break
    one.reset()
    _play(one, actions[:_BEFORE])
    state, random = layers.capture(first, [one.unwrapped], method), capture_random()
    expected = _play_on(one, actions)
    other.reset(seed=2)
    _play(other, actions[_BEFORE + _AFTER :])
    np.random.random_sample(7)
    layers.restore(second, [other.unwrapped], state)
    restore_random(random)
    return _play_on(other, actions) == expected


def _play_on(env: Env, actions: Sequence[object]) -> list[bytes]:
    """Continue the episode, and into the next one."""
    ours = actions[_BEFORE : _BEFORE + _AFTER]
    half = len(ours) // 2
    return [*_play(env, ours[:half]), digest(env.reset()[0]), *_play(env, ours[half:])]


def _play(env: Env, actions: Sequence[object]) -> list[bytes]:
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(_allowed(env, action))
        seen.append(digest((observation, reward, terminated, truncated)))
        if terminated or truncated:
            seen.append(digest(env.reset()[0]))
    return seen


def _actions(env: Env, number: int) -> list[object]:
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    return [space.sample() for _ in range(number)]


def _allowed(env: Any, action: Any) -> Any:
    """Keep to the masks of an environment that has them."""
    try:
        mask = np.asarray(env.get_wrapper_attr("action_masks")())
    except (AttributeError, TypeError):
        return action
    if not isinstance(env.action_space, gym.spaces.Discrete) or mask[int(action)]:
        return action
    possible = np.flatnonzero(mask)
    return possible[int(action) % len(possible)] if len(possible) else action
