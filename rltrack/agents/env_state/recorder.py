"""Replay: for an environment whose inside cannot be taken, remember how its running episode came about.

At a reset the environment's random streams are kept, then the arguments, then each action; a rolling hash covers every
observation, reward and flag. Doing it all again in a fresh copy must give the same hash: that is checked, never assumed.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from typing import Any

import numpy as np

from rltrack.agents.gym_types import Env, Reset, Step
from rltrack.checkpoints.encoding import State
from rltrack.errors import NotCapturable, ResumeMismatch

_ATTRIBUTE = "_rltrack_recorder"


class Recorder:
    """Listens to one environment's ``reset`` and ``step``.

    Args:
        env: The environment itself, without wrappers.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        self._reset, self._step = env.reset, env.step
        self._before: State | None = None
        self._arguments: dict[str, Any] = {}
        self._actions: list[object] = []
        self._hash = hashlib.blake2b(digest_size=16)

        @functools.wraps(self._reset)
        def reset(**arguments: Any) -> Reset:
            return self._on_reset(arguments)

        @functools.wraps(self._step)
        def step(action: object) -> Step:
            return self._on_step(action)

        vars(env).update({"reset": reset, "step": step, _ATTRIBUTE: self})

    def remove(self) -> None:
        """Stop listening."""
        for name in ("reset", "step", _ATTRIBUTE):
            vars(self.env).pop(name, None)

    def capture(self) -> dict[str, object]:
        """Return what it takes to get here again.

        Raises:
            NotCapturable: If no episode has begun.
        """
        if self._before is None:
            raise NotCapturable(f"{type(self.env).__name__} was not reset since recording began.")
        return {
            "before": self._before,
            "arguments": self._arguments,
            "actions": list(self._actions),
            "digest": self._hash.hexdigest(),
            "after": streams_of(self.env)["np_random"],  # spaces may be sampled by the agent too
        }

    def replay(self, saved: State) -> None:
        """Play the recorded stretch again.

        Raises:
            ResumeMismatch: If something else came out.
        """
        _put_streams(self.env, saved["before"])
        self._on_reset(saved["arguments"])
        for action in saved["actions"]:
            self._on_step(action)
        if self._hash.hexdigest() != saved["digest"] or streams_of(self.env)["np_random"] != saved["after"]:
            raise ResumeMismatch(
                f"{type(self.env).__name__}: replaying the {len(saved['actions'])} actions since its last reset did not give "
                "what was recorded: a reset of this environment depends on more than its random stream."
            )

    def _on_reset(self, arguments: dict[str, Any]) -> Reset:
        before = streams_of(self.env)
        result = self._reset(**arguments)
        self._before, self._arguments, self._actions = before, dict(arguments), []
        self._hash = hashlib.blake2b(digest_size=16)
        _update(self._hash, result[0])
        return result

    def _on_step(self, action: object) -> Step:
        self._actions.append(np.array(action) if isinstance(action, np.ndarray) else action)
        result = self._step(action)
        for item in result[:4]:
            _update(self._hash, item)
        return result


def record(env: Env) -> Recorder:
    """Begin to record, unless that was done before."""
    known = vars(env).get(_ATTRIBUTE)
    return known if isinstance(known, Recorder) else Recorder(env)


def recorder_of(env: object) -> Recorder:
    """Return the recorder of an environment.

    Raises:
        NotCapturable: If it has none.
    """
    known = vars(env).get(_ATTRIBUTE)
    if not isinstance(known, Recorder):
        raise NotCapturable(f"{type(env).__name__} was not recorded from its first reset on.")
    return known


def digest(outcome: object) -> bytes:
    """Return a hash of what a reset or a step returned."""
    hashed = hashlib.blake2b(digest_size=16)
    _update(hashed, outcome)
    return hashed.digest()


def _update(hashed: hashlib.blake2b, value: object) -> None:
    if isinstance(value, np.ndarray) and value.dtype == object:
        _update(hashed, value.tolist())
    elif isinstance(value, np.ndarray | np.generic | bool | int | float):
        array = np.asarray(value)
        hashed.update(str(array.dtype).encode())
        hashed.update(np.ascontiguousarray(array).data if array.ndim else array.tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            hashed.update(str(key).encode())
            _update(hashed, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _update(hashed, item)
    else:
        hashed.update(pickle.dumps(value))


def streams_of(env: Env) -> dict[str, object]:
    """Return the random streams of an environment and of its spaces."""
    generator = vars(env).get("_np_random")
    return {
        "np_random": None if generator is None else generator.bit_generator.state,
        "seed": vars(env).get("_np_random_seed"),
        "spaces": [
            None if space._np_random is None else space._np_random.bit_generator.state
            for space in (env.action_space, env.observation_space)
        ],
    }


def _put_streams(env: Env, saved: State) -> None:
    if saved["np_random"] is None:
        env._np_random = None
    else:
        generator = np.random.Generator(getattr(np.random, saved["np_random"]["bit_generator"])())
        generator.bit_generator.state = saved["np_random"]
        env._np_random = generator
    env._np_random_seed = saved["seed"]
    for space, stream in zip((env.action_space, env.observation_space), saved["spaces"], strict=True):
        if stream is not None:
            space.np_random.bit_generator.state = stream
