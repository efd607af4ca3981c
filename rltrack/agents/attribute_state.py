"""What Python attributes of an object changed since a moment, in it and in the objects that it holds.

A model, a callback, a schedule or an action noise is built again by the script or the configuration that made it. What it was
built with is theirs; what training changed since belongs into a version. So only changes are stored, and put back where they
were: ``lr_schedule``, ``value_schedule``, ``val``. A change that has no form as plain data is named, so that a run can be
labelled.

Objects of libraries that draw, write or log are not looked into, nor are environments.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv

from rltrack.acceleration.patches import Replacement
from rltrack.agents.algorithms import ScaledSchedule
from rltrack.agents.stored_values import KINDS, Stored, copied, is_plain, needs_live, put_back, same, stored
from rltrack.errors import ConfigurationError
from rltrack.text import printable

Path: TypeAlias = tuple[str | int, ...]
"""Attributes, keys and indices, from the owner on."""

Skip: TypeAlias = Callable[[Any, str, Any], bool]
"""Whether an attribute (of an object, by name, with its value) is kept elsewhere."""

_CLOSED = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, VecEnv, gym.Env,
    gym.Space, BaseAlgorithm, BaseCallback, Distribution, Logger, KVWriter, torch.Tensor,
)  # fmt: skip
_CLOSED_PACKAGES = (
    "concurrent", "flax", "io", "jax", "jaxlib", "logging", "matplotlib", "mlflow", "multiprocessing", "optax",
    "pathlib", "queue", "rich", "rltrack", "socket", "subprocess", "tensorboard", "threading", "tqdm", "wandb", "weakref",
)  # fmt: skip
_OF_MODULES = frozenset(vars(torch.nn.Module()))
_OF_OPTIMIZERS = frozenset(vars(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)))


_NAMED = 3
"""How many changes a reason names."""


_DEPTH = 20
"""How deep objects are looked into: a linked list may be longer than Python's stack."""


class _Only:
    """An object that is equal to itself only, also if it has an ``==`` of its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Only) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


class AttributeState:
    """The attributes of an object as they are now, to find later what changed.

    Args:
        owner: Any object.
        name: What a user calls it.
        skip: What is kept elsewhere.
        elsewhere: Modules, optimizers and tensors whose content is kept elsewhere; only their other attributes matter.
        closed: Objects that are not looked into.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        *,
        skip: Skip = lambda holder, name, value: False,
        elsewhere: Iterable[Any] = (),
        closed: Iterable[Any] = (),
    ) -> None:
        self._owner, self._name, self._skip = owner, name, skip
        self.not_captured: str | None = None
        """What the last `capture` left out, as a reason why a resume is not exact; None if nothing."""
        self._elsewhere, self._closed = list(elsewhere), list(closed)
        self.remember()

    def remember(self) -> None:
        """Count from now on what changes."""
        self._before = self._look()

    def capture(self) -> list[list[Any]]:
        """Return path, kind and plain data of each change, for `restore`."""
        now, found, lost = self._look(), [], []
        done: set[Path] = set()
        for path, (kind, data) in now.items():
            before = self._before.get(path)
            if (before is not None and before.kind == kind and same(before.data, data)) or _below(path, done):
                continue
            parent = now.get(path[:-1])
            is_kept = kind in KINDS and not (parent is not None and parent.kind == "tuple")
            if is_kept and not (needs_live(kind) and (before is None or before.kind != kind)):
                found.append([list(path), kind, data])
            else:
                lost.append(path)
            done.add(path)
        lost += [path for path in self._before if path not in now and not _below(path, done)]
        self.not_captured = self._reason(lost)
        return found

    def restore(self, saved: Sequence[Sequence[Any]]) -> None:
        """Put back what `capture` returned.

        Raises:
            ConfigurationError: If the object is not built as it was.
        """
        path: Path = ()
        for change in saved:
            try:
                place, kind, data = change
                path = tuple(place)
                *steps, name = path
                holder = self._owner
                for index, step in enumerate(steps, start=1):
                    if path[:index] not in self._before:  # only what was looked into: a version may be hostile
                        raise ValueError("there is no such object")
                    holder = _child(holder, step)
                live = _child(holder, name)
                value = put_back(Stored(kind, data), live)
                if value is not live:
                    _set(holder, name, value)
            except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
                raise ConfigurationError(
                    f"The saved {_text(path)} does not fit {self._name}: {' '.join(str(error).split())}. Build it as it was when "
                    "it was saved."
                ) from None

    def _reason(self, lost: Sequence[Path]) -> str | None:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        names = ", ".join(map(_text, lost[:_NAMED]))
        return f"{self._name} changed {names}{more}, which cannot be stored" if lost else None

    def _look(self) -> dict[Path, Stored]:
        found: dict[Path, Stored] = {}
        held = {id(item) for item in self._elsewhere}
        seen: dict[int, Path] = {id(item): () for item in self._closed}

        def visit(path: Path, value: Any) -> None:
            if isinstance(value, Replacement):
                return
            value = _unwrapped(value)
            taken = Stored("elsewhere", _Only(value)) if id(value) in held else stored(value)
            if taken is not None:
                found[path] = taken
                if taken.kind == "module":
                    held.update(map(id, (*value.modules(), *value.parameters(), *value.buffers())))
            if taken is None and len(path) < _DEPTH and (keys := _keys(value)) is not None:
                if id(value) in seen:
                    found[path] = Stored("object", (_Only(type(value)), list(seen[id(value)])))
                    return
                seen[id(value)] = path
                found[path] = Stored(type(value).__name__, keys)
                for key in keys:
                    visit((*path, key), value[key])
            elif (
                len(path) < _DEPTH
                and _is_open(value)
                and (taken is None or isinstance(value, torch.nn.Module | torch.optim.Optimizer))
            ):
                if id(value) in seen:
                    found[path] = Stored("object", (_Only(type(value)), list(seen[id(value)])))
                    return
                seen[id(value)] = path
                found.setdefault(path, Stored("object", (_Only(type(value)), list(path))))
                for name, item in _attributes(value):
                    if not self._skip(value, name, item):
                        visit((*path, name), item)
            elif taken is None:
                found[path] = Stored("other", _frozen(value))

        for name, item in _attributes(self._owner):
            if not self._skip(self._owner, name, item):
                visit((name,), item)
        return found


def _text(path: Path) -> str:
    return f"`{printable('.'.join(map(str, path)))}`"


def _below(path: Path, paths: set[Path]) -> bool:
    return any(path[:length] in paths for length in range(1, len(path)))


def _unwrapped(value: Any) -> Any:
    return value.schedule if isinstance(value, ScaledSchedule) else value


def _keys(value: Any) -> list[Any] | None:
    """Where the items of a list, tuple or dictionary are; None for what is none, or has keys that no path can have."""
    if type(value) in (list, tuple):
        return list(range(len(value)))
    return list(value) if type(value) is dict and all(type(key) in (str, int) for key in value) else None


def _is_open(value: Any) -> bool:
    if isinstance(value, _CLOSED) or not hasattr(value, "__dict__"):
        return False
    return not any(base.__module__.partition(".")[0] in _CLOSED_PACKAGES for base in type(value).__mro__)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    own = vars(value)
    if isinstance(value, torch.nn.Module):
        is_stock = type(value).__module__.startswith(("torch.", "stable_baselines3.", "sb3_contrib."))
        for name, item in own.items():
            if name not in _OF_MODULES and (not is_stock or is_plain(item) or isinstance(item, torch.optim.Optimizer)):
                yield name, item
        for name in sorted(value._non_persistent_buffers_set):
            yield name, value._buffers[name]
        yield from value._modules.items()
    elif isinstance(value, torch.optim.Optimizer):
        yield from ((name, item) for name, item in own.items() if name not in _OF_OPTIMIZERS)
    else:
        yield from list(own.items())


def _frozen(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """Something that is the `same` later if the value did not change; of objects, their identity."""
    if is_plain(value):
        return copied(value)
    if id(value) in inside or len(inside) >= _DEPTH:
        return _Only(value)
    freeze = functools.partial(_frozen, inside=(*inside, id(value)))
    if isinstance(value, dict):
        return (_Only(type(value)), [(freeze(key), freeze(item)) for key, item in value.items()])
    if isinstance(value, list | tuple | set | frozenset | deque):
        return (_Only(type(value)), list(map(freeze, value)))
    if isinstance(value, np.ndarray):
        return (str(value.dtype), list(map(freeze, value.ravel().tolist())), value.shape)
    return _Only(value)


def _child(holder: Any, step: Any) -> Any:
    if isinstance(holder, list | tuple | dict):
        return holder[step]
    if isinstance(holder, torch.nn.Module):
        for group in (holder._modules, holder._buffers):
            if step in group:
                return group[step]
    return _unwrapped(vars(holder).get(step))


def _set(holder: Any, step: Any, value: Any) -> None:
    if isinstance(holder, list | dict):
        holder[step] = value
    else:
        setattr(holder, step, value)
