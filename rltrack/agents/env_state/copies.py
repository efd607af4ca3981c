"""Scratch copies of an environment that a script built: they share nothing with it that a step may change.

A copy is a pickle stream that stays in this process, so that classes and functions of a script need no importable name.
"""

from __future__ import annotations

import io
import os
import pickle
import types
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter

from rltrack.agents.env_state.layers import gym_layers, is_of_the_screen
from rltrack.agents.env_state.streams import LayerPickler
from rltrack.agents.gym_types import Env
from rltrack.errors import NotCapturable
from rltrack.secrets import one_line

_LARGEST_BYTES = 256 * 2**20
_SHARED = (EnvSpec, types.ModuleType, types.CodeType, type)
_FILES_IN_MEMORY = (io.BytesIO, io.StringIO)


def copier(env: Env) -> Callable[[], Env]:
    """Return what makes copies of an environment as it is now. Do not close them: a handle may be the environment's own.

    Raises:
        NotCapturable: If it cannot be copied without risk to itself; the attribute is named.
        MemoryError: If it is large.
    """
    shared: list[Any] = []
    buffer = io.BytesIO()
    try:
        pickler = _CopyPickler(buffer, shared)
        pickler.dump(env)
        if views := pickler.shared_arrays():
            buffer, shared = io.BytesIO(), []
            _CopyPickler(buffer, shared, views).dump(env)
    except Exception as error:  # whatever an object raises that cannot be copied
        raise NotCapturable(f"no copy could be made to test how it can be taken: {_culprit(env, error)}") from None
    if buffer.tell() > _LARGEST_BYTES:
        raise MemoryError(
            f"{type(env.unwrapped).__name__} has {buffer.tell()} bytes; up to {_LARGEST_BYTES} are copied."
        )

    def copy() -> Env:
        found: Env = _CopyUnpickler(io.BytesIO(buffer.getvalue()), shared).load()
        return found

    return copy


def _culprit(env: Env, error: Exception) -> str:
    """Name the first attribute that cannot be copied."""
    for layer in gym_layers(env):
        for name, value in vars(layer).items():
            if isinstance(value, gym.Env):
                continue
            try:
                _CopyPickler(io.BytesIO(), [], layers=[env]).dump(value)
            except Exception as own:
                return f"{type(layer).__name__}.{name} is a {type(value).__name__} ({one_line(own)})"
    return one_line(error)


class _Shared:
    """Stands for what a copy shares with the original."""

    def __init__(self, value: object) -> None:
        self.value = value


class _CopyPickler(LayerPickler):
    """Writes references to what no step changes, and everything else whole.

    Args:
        buffer: Where to write.
        shared: What is referred to is appended.
        views: As `LayerPickler`'s ``shared``.
        layers: Referred to as well.
    """

    def __init__(
        self,
        buffer: io.BytesIO,
        shared: list[Any],
        views: frozenset[int] = frozenset(),
        layers: tuple[Env, ...] | list[Env] = (),
    ) -> None:
        super().__init__(buffer, (), [], views)
        self._kept = shared
        self._layers = layers

    def persistent_id(self, value: object) -> Any:
        """Refer to what copies share with the original."""
        if isinstance(value, _Shared):
            value = value.value
        elif isinstance(value, ResultsWriter):
            value = None  # a Monitor without one writes no file
        elif isinstance(value, types.FunctionType):
            if value.__closure__:
                return None
        elif isinstance(value, types.BuiltinFunctionType):
            if not isinstance(value.__self__, types.ModuleType | types.NoneType):
                return None
        elif value is None or not (
            isinstance(value, _SHARED) or is_of_the_screen(value) or any(value is layer for layer in self._layers)
        ):
            return None
        self._kept.append(value)
        return len(self._kept) - 1

    def reducer_override(self, value: Any) -> Any:
        """Give a copy closures and files of its own."""
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return _new_function, (_Shared(value), len(cells)), cells, None, None, _fill
        if isinstance(value, gym.wrappers.RecordVideo):
            return _itself, (value.env,)  # scratch episodes are not filmed
        if isinstance(value, io.IOBase):
            if isinstance(value, _FILES_IN_MEMORY):
                return NotImplemented
            encoding = getattr(value, "encoding", None)
            return _reopen, (value.name, value.mode, value.writable() or value.tell(), encoding)  # type: ignore[attr-defined]
        if any("__del__" in vars(cls) for cls in type(value).__mro__):
            raise NotCapturable("it has a __del__, which would run for the copy, too")
        if "_ezpickle_args" in getattr(value, "__dict__", ()):
            return NotImplemented  # a new one, as good as a copy to begin with
        return super().reducer_override(value)


class _CopyUnpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, shared: list[Any]) -> None:
        super().__init__(buffer)
        self._shared = shared

    def persistent_load(self, reference: Any) -> Any:
        """Return what copies share."""
        return self._shared[reference]


def _new_function(function: types.FunctionType, n_cells: int) -> types.FunctionType:
    """Return a function like another one, with a closure of its own, as yet empty."""
    cells = tuple(types.CellType() for _ in range(n_cells))
    new = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    new.__kwdefaults__ = function.__kwdefaults__
    vars(new).update(vars(function))
    return new


def _fill(function: types.FunctionType, contents: list[Any]) -> None:
    for cell, value in zip(function.__closure__ or (), contents, strict=True):
        cell.cell_contents = value


def _itself(env: Env) -> Env:
    return env


def _reopen(name: str, mode: str, position: bool | int, encoding: str | None) -> Any:
    """Open a file that is read at its place again; what is written goes nowhere."""
    if position is True:
        return open(os.devnull, "w+b" if "b" in mode else "w+", encoding=encoding)
    file = open(name, mode, encoding=encoding)  # noqa: SIM115 - as long as the copy
    file.seek(position)
    return file
