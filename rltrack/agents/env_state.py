"""The inside of vectorised environments at a boundary: taken whole, and put back in place in a fresh copy.

One pickle stream holds the attributes of every layer, from the outermost vector wrapper to each environment's own, so that
objects that two layers share stay shared. What must stay live is left where it is: the layers themselves, spaces (their
random streams are taken apart), specifications, functions, modules and open files.

Reading a stream runs code, as any pickle does: it is a part of its own that only a resume reads.
"""

from __future__ import annotations

import io
import pickle
import time
import types
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from rltrack.errors import NotCapturable

_STAYS = (EnvSpec, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, io.IOBase, type)


def capture(env: VecEnv) -> dict[str, Any]:
    """Return the state of every layer.

    Raises:
        NotCapturable: If an attribute cannot be pickled, or the environments live in other processes; it is named.
    """
    layers = list(_layers(env))
    spaces = _spaces(layers)
    contents = [_attributes(layer) for layer in layers]
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, layers, spaces).dump(contents)
    except Exception as error:
        raise NotCapturable(_culprit(layers, spaces, contents, error)) from None
    return {
        "pickle": buffer.getvalue(),
        "layers": [type(layer).__name__ for layer in layers],
        "spaces": [_stream(space) for space in spaces],
        "time": time.time(),
    }


def restore(env: VecEnv, state: dict[str, Any]) -> None:
    """Put the state back into an environment that was built as the first one was.

    Raises:
        NotCapturable: If it was built otherwise.
    """
    layers = list(_layers(env))
    spaces = _spaces(layers)
    names = [type(layer).__name__ for layer in layers]
    if names != state["layers"] or len(spaces) != len(state["spaces"]):
        raise NotCapturable(
            f"The environment was saved with the layers {' > '.join(state['layers'])}; now it has {' > '.join(names)}. Build it "
            "as the first time."
        )
    contents = _Unpickler(io.BytesIO(state["pickle"]), layers, spaces).load()
    away = time.time() - state["time"]
    for layer, attributes in zip(layers, contents, strict=True):
        vars(layer).update(attributes)
        if "t_start" in attributes:  # a Monitor's clock goes on as if no time had passed
            layer.t_start += away
    for space, stream in zip(spaces, state["spaces"], strict=True):
        if stream is None:
            space._np_random = None  # type: ignore[assignment]
        else:
            space.np_random.bit_generator.state = stream


def _layers(env: VecEnv) -> Iterator[Any]:
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        yield layer
        layer = layer.venv
    yield layer
    if not isinstance(layer, DummyVecEnv):
        raise NotCapturable(f"The environments of a {type(layer).__name__} live in other processes.")
    for inner in layer.envs:
        while True:
            yield inner
            if not isinstance(inner, gym.Wrapper):
                break
            inner = inner.env


def _attributes(layer: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(layer).items()
        if name != "class_attributes"  # SB3's list of a vector wrapper's own class members
        and not isinstance(value, (*_STAYS, gym.Space))
        and not type(value).__module__.startswith("pygame")
    }


def _spaces(layers: list[Any]) -> list[gym.Space[Any]]:
    """Every space that a layer holds, nested ones too, each once, in an order that depends on the construction only."""
    found: dict[int, gym.Space[Any]] = {}

    def add(value: Any) -> None:
        if isinstance(value, gym.Space) and id(value) not in found:
            found[id(value)] = value
            inner = getattr(value, "spaces", ())
            for item in inner.values() if isinstance(inner, dict) else inner:
                add(item)

    for layer in layers:
        for _, value in sorted(vars(layer).items()):
            add(value)
    return list(found.values())


def _stream(space: gym.Space[Any]) -> Any:
    generator = space._np_random
    return None if generator is None else generator.bit_generator.state


class _Pickler(pickle.Pickler):
    """Writes references to what stays live."""

    def __init__(self, buffer: io.BytesIO, layers: list[Any], spaces: list[Any]) -> None:
        super().__init__(buffer, protocol=5)
        self._live = {id(value): ("layer", index) for index, value in enumerate(layers)}
        self._live |= {id(value): ("space", index) for index, value in enumerate(spaces)}

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        return self._live.get(id(value))


class _Unpickler(pickle.Unpickler):
    """Resolves references to what is live now."""

    def __init__(self, buffer: io.BytesIO, layers: list[Any], spaces: list[Any]) -> None:
        super().__init__(buffer)
        self._live = {"layer": layers, "space": spaces}

    def persistent_load(self, reference: Any) -> Any:
        kind, index = reference
        return self._live[kind][index]


def _culprit(layers: list[Any], spaces: list[Any], contents: list[dict[str, Any]], error: Exception) -> str:
    """Name the first attribute that cannot be pickled."""
    for layer, attributes in zip(layers, contents, strict=True):
        for name, value in attributes.items():
            try:
                _Pickler(io.BytesIO(), layers, spaces).dump(value)
            except Exception as own:
                return f"{type(layer).__name__}.{name} is a {type(value).__name__}, which cannot be pickled ({own})."
    return f"The environment cannot be pickled: {error}."
