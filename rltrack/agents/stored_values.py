"""Values that can be part of a version: which they are, as plain data, and put back.

Types are compared exactly: a named tuple is no tuple, and code to which a version gave it back as one would fail.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

Leaf = TypeVar("Leaf")

_NUMBERS_AND_TEXTS = (type(None), bool, int, float, str, bytes)
_DTYPES = frozenset(
    ["bool", "complex64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
    + [f"float{bits}" for bits in (16, 32, 64)]
)
_DEPTH = 100
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class Stored(NamedTuple):
    """A value as plain data.

    Attributes:
        kind: One of `KINDS`.
        data: What `put_back` takes.
    """

    kind: str
    data: Any


def is_number_or_text(value: Any) -> bool:
    """Whether it is None, a boolean, a number, a text or bytes, numpy's numbers included."""
    return type(value) in _NUMBERS_AND_TEXTS or (isinstance(value, np.generic) and value.dtype.name in _DTYPES)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether it is a number, a text, an array, or a list, tuple or dictionary of these, nested `_DEPTH` times at most.

    A list that holds itself is none.
    """
    if is_number_or_text(value):
        return True
    kind = type(value)
    if kind is np.ndarray:
        return value.dtype.name in _DTYPES
    if depth >= _DEPTH:
        return False
    if kind is list or kind is tuple:
        return all(is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return all(_is_key(key) and is_plain(item, depth + 1) for key, item in value.items())
    return False


def _is_key(value: Any) -> bool:
    return all(map(_is_key, value)) if type(value) is tuple else type(value) in _NUMBERS_AND_TEXTS


def copied(value: Any) -> Any:
    """Return a copy of plain data that shares nothing with it."""
    kind = type(value)
    if kind is np.ndarray:
        return value.copy()
    if kind is list or kind is tuple:
        return kind(map(copied, value))
    if kind is dict:
        return {key: copied(item) for key, item in value.items()}
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two values have the same types and bits; NaN is itself, and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    return bool(one.hex() == other.hex() if isinstance(one, float) else one == other)


def to_numpy(value: object) -> Any:
    """Return a nested value with copies of its tensors as arrays."""
    return _mapped(value, torch.Tensor, lambda tensor: tensor.detach().cpu().numpy().copy())


def to_torch(value: object) -> Any:
    """Return a nested value with copies of its arrays as tensors."""
    return _mapped(value, np.ndarray, lambda array: torch.from_numpy(array.copy()))


def _mapped(value: object, kind: type[Leaf], convert: Callable[[Leaf], object]) -> object:
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, dict):
        return {key: _mapped(item, kind, convert) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, kind, convert) for item in value)
    return value


def stored(value: Any) -> Stored | None:
    """Return a value as plain data that shares nothing with it; None if it has no such form.

    What has a state that cannot be read is of the kind ``unreadable``, which is never the `same`.
    """
    if is_plain(value):
        return Stored("plain", copied(value))
    for name, kind in _KINDS.items():
        if isinstance(value, kind.types):
            try:
                data = kind.take(value)
            except Exception:  # a tensor of a type that numpy lacks; whatever a user's state_dict() raises
                data = None
            if data is not None and is_plain(data):
                return Stored(name, data)
            return None if name in ("deque", "mapping", "tensor") else Stored("unreadable", object())
    return None


def needs_live(kind: str) -> bool:
    """Whether the value can only be put into one that is there already."""
    return kind in ("mapping", "module", "optimizer")


def put_back(saved: Stored, live: Any) -> Any:
    """Return the value, in place of a live one that is overwritten if it is of the same kind.

    Raises:
        ValueError: If nothing of this kind is written here, or the live value does not fit. What torch and numpy raise comes
            through.
    """
    if saved.kind == "plain":
        return copied(saved.data)
    if saved.kind not in _KINDS:
        raise ValueError(f"{saved.kind[:80]!r} is no kind of value that is stored")
    kind = _KINDS[saved.kind]
    return kind.put(saved.data, live if isinstance(live, kind.types) else None)


class _Kind(NamedTuple):
    types: type | tuple[type, ...]
    take: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]


def _put_tensor(data: Any, live: torch.Tensor | None) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(data["values"]))
    if live is None or live.shape != tensor.shape or live.dtype != tensor.dtype:
        return tensor.to(torch.device(data["device"]) if live is None else live.device)
    with torch.no_grad():  # in place: an optimizer may hold it
        return live.copy_(tensor)


def _load(data: Any, live: Any) -> Any:
    if live is None:
        raise ValueError("there is nothing to load it into")
    live.load_state_dict(to_torch(data))
    return live


def _put_mapping(data: Any, live: Any) -> Any:
    name, pairs = data
    if type(live).__name__ != name:
        raise ValueError(f"it is no {str(name)[:80]}")
    live.clear()
    live.update(copied(pairs))
    return live


def _take_generator(value: np.random.Generator) -> Any:
    state: Any = value.bit_generator.state
    return state if state["bit_generator"] in _BIT_GENERATORS else None


def _put_generator(data: Any, live: np.random.Generator | None) -> np.random.Generator:
    name = data["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise ValueError(f"{str(name)[:80]!r} is no bit generator of numpy")
    if live is None or type(live.bit_generator).__name__ != name:
        live = np.random.Generator(getattr(np.random, name)())
    live.bit_generator.state = data
    return live


def _put_random_state(data: Any, live: np.random.RandomState | None) -> np.random.RandomState:
    live = live or np.random.RandomState()
    live.set_state(data)
    return live


def _take_random(value: random.Random) -> Any:
    version, internal, gauss = value.getstate()
    return version, np.array(internal, dtype=np.uint32), gauss


def _put_random(data: Any, live: random.Random | None) -> random.Random:
    live = live or random.Random()
    version, internal, gauss = data
    live.setstate((version, tuple(int(word) for word in internal), gauss))
    return live


def _put_torch_generator(data: Any, live: torch.Generator | None) -> torch.Generator:
    live = torch.Generator() if live is None else live
    live.set_state(torch.from_numpy(np.array(data)))
    return live


_KINDS = {
    "deque": _Kind(
        deque,
        lambda value: (copied(list(value)), value.maxlen) if is_plain(list(value)) else None,
        lambda data, live: deque(copied(data[0]), data[1]),
    ),
    "mapping": _Kind(  # into one that is there: only that has the function for missing keys
        (defaultdict, OrderedDict, Counter), lambda value: (type(value).__name__, copied(dict(value))), _put_mapping
    ),
    "generator": _Kind(np.random.Generator, _take_generator, _put_generator),
    "random_state": _Kind(np.random.RandomState, lambda value: value.get_state(legacy=False), _put_random_state),
    "random": _Kind(random.Random, _take_random, _put_random),
    "torch_generator": _Kind(torch.Generator, lambda value: to_numpy(value.get_state()), _put_torch_generator),
    "tensor": _Kind(torch.Tensor, lambda value: {"values": to_numpy(value), "device": str(value.device)}, _put_tensor),
    "module": _Kind(torch.nn.Module, lambda value: to_numpy(value.state_dict()), _load),
    "optimizer": _Kind(torch.optim.Optimizer, lambda value: to_numpy(value.state_dict()), _load),
}

KINDS = frozenset(("plain", *_KINDS))
"""Of values that are stored."""
