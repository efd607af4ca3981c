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
from rltrack.agents.env_state.copies import copier
from rltrack.agents.env_state.recorder import digest, record
from rltrack.agents.gym_types import Env
from rltrack.agents.random_state import capture_random, restore_random, untouched_random_streams
from rltrack.cleanup import close_all
from rltrack.errors import NotCapturable, ResumeMismatch
from rltrack.secrets import one_line

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
        is_shown: Whether copies have shown it; False where there were none.
    """

    method: str | None
    reasons: tuple[str, ...]
    is_shown: bool = True


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
            return _examine(lambda: (copies[0], copies[1]))
        finally:
            close_all(*copies)


def probe_copies(env: Env) -> Finding:
    """As `probe`, for an environment that a script built: on copies of the environment as it is, which stays as it is.

    Raises:
        Exception: Whatever resetting or stepping raises.
    """
    try:
        copy_env = copier(env)
    except NotCapturable as error:  # what cannot be copied may be more than what would be taken
        return Finding("own" if layers.has_own_state(env.unwrapped) else None, (str(error),), is_shown=False)
    spaces: tuple[Any, ...] = (env.action_space, env.observation_space)  # a class may have them
    streams = [None if space._np_random is None else space._np_random.bit_generator.state for space in spaces]
    try:
        with untouched_random_streams():
            return _examine(lambda: (copy_env(), copy_env()))
    finally:
        for space, stream in zip(spaces, streams, strict=True):
            if stream is None:
                space._np_random = None
            else:
                space._np_random.bit_generator.state = stream


def _examine(make_copies: Callable[[], tuple[Env, Env]]) -> Finding:
    reasons: list[str] = []
    partial: Finding | None = None
    one, other = make_copies()
    for method in candidates(one.unwrapped):
        if method == "replay" and partial is not None:
            return partial
        try:
            left_out = _works(method, one, other)
        except (NotCapturable, ResumeMismatch) as error:
            reasons.append(f"{method}: {error}")
        else:
            if not left_out:
                return Finding(method, tuple(reasons))
            partial = Finding(method, tuple(reasons))  # what is left out may be a handle, or what shows later than here
            reasons.append(f"{method}: set_state() leaves {', '.join(left_out)} as it was")
        one, other = make_copies()
    return Finding(None, tuple(reasons))


def _works(method: str, one: Env, other: Env) -> list[str]:
    """Take over the state and go on; return which attributes differ then, although nothing seen does.

    Raises:
        NotCapturable, ResumeMismatch: If the method does not work.
    """
    for env in (one, other):
        record(env.unwrapped)
    actions = _actions(one, _BEFORE + _AFTER + _ELSEWHERE)
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
    held = layers.pickled_attributes(one.unwrapped)
    expected = _play_on(one, actions)
    other.reset(seed=2)
    _play(other, actions[_BEFORE + _AFTER :])
    np.random.random_sample(7)
    try:
        layers.restore(second, [other.unwrapped], state)
        restore_random(random)
        now = layers.pickled_attributes(other.unwrapped)
        goes_on = _play_on(other, actions) == expected
    except (NotCapturable, ResumeMismatch):
        raise
    except Exception as error:  # whatever an environment raises that is not whole
        raise ResumeMismatch(
            f"a copy that took over the state raised {type(error).__name__}: {one_line(error)}"
        ) from None
    if not goes_on:
        raise ResumeMismatch("a copy that took over the state went on differently")
    if method != "own":
        return []
    return [name for name in held if held[name] != now.get(name) and not name.startswith("_np_random")]


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
