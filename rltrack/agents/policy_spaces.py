"""Gymnasium's spaces as plain data, and back: same order of keys, same dtypes and bounds.

Reading refuses whatever is no space of a sensible size. Like `exported_policy`, this module needs nothing else of rltrack, and a
copy of it lies in every stored model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

MAX_ELEMENTS = 10_000_000
"""Of one space; 84 × 84 × 4 pixels are 28,224."""

_MAX_DEPTH, _MAX_AXES = 8, 16
_DTYPES = (
    "float16", "float32", "float64", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)  # fmt: skip


# ---- writing ----


def space_as_data(space: object) -> dict[str, object]:
    """Return a space as plain data, from which `space_of` builds an equal one.

    Raises:
        ValueError: If it cannot be stored.
    """
    data = _described(space)
    built = space_of(data)
    if built != space or not _alike(built, space):
        raise ValueError(f"The space {space} cannot be stored: built again from data it would be {built}.")
    return data


def _described(space: object) -> dict[str, object]:
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str) for key in space.spaces):
            raise ValueError(f"The space {space} cannot be stored: its keys are not texts.")
        return {"type": "Dict", "spaces": [[key, _described(item)] for key, item in space.spaces.items()]}
    if isinstance(space, spaces.Box):
        shape, dtype = [int(length) for length in space.shape], str(space.dtype)
        low, high = _bounds(space.low, space.bounded_below), _bounds(space.high, space.bounded_above)
        return {"type": "Box", "shape": shape, "dtype": dtype, "low": low, "high": high}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        start = getattr(space, "start", np.zeros_like(space.nvec)).tolist()
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        n = int(space.n) if isinstance(space.n, int | np.integer) else [int(length) for length in space.shape]
        return {"type": "MultiBinary", "n": n}
    raise ValueError(
        f"The space {space} cannot be stored; a model takes Box, Discrete, MultiDiscrete, MultiBinary or Dict."
    )


def _bounds(values: np.ndarray, bounded: np.ndarray) -> Any:
    """A single number where all are the same; infinities as text, also those that an integer stands for."""
    if not values.size:
        return 0
    if (values == values.flat[0]).all() and (bounded == bounded.flat[0]).all():
        return _as_json(values.flat[0].item(), bounded.flat[0])
    flat = [
        _as_json(value, is_bounded) for value, is_bounded in zip(values.ravel().tolist(), bounded.ravel(), strict=True)
    ]
    nested: Any = flat
    for length in reversed(values.shape[1:]):
        nested = [nested[index : index + length] for index in range(0, len(nested), length)]
    return nested


def _as_json(value: float, is_bounded: object) -> float | str:
    return value if is_bounded and abs(value) != math.inf else "-inf" if value < 0 else "inf"


def _alike(one: Any, other: Any) -> bool:
    """What Gymnasium's comparison leaves out: it ignores the order of keys, and takes bounds that are close for equal."""
    if isinstance(one, spaces.Dict):
        pairs = zip(one.spaces.items(), other.spaces.items(), strict=True)
        return all(name == key and _alike(left, right) for (name, left), (key, right) in pairs)
    if isinstance(one, spaces.Box):
        names = ("low", "high", "bounded_below", "bounded_above")
        return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one.dtype == other.dtype)


# ---- reading ----


def space_of(data: object, depth: int = 0) -> Any:
    """Return the space that a description stands for.

    Raises:
        ValueError: If it stands for none.
    """
    if depth > _MAX_DEPTH or not isinstance(data, Mapping):
        raise ValueError(f"A space in the policy's description is {shown(data)}, or is nested too deep.")
    build: dict[str, Callable[..., spaces.Space[Any]]] = {
        "Box": _box, "Discrete": _discrete, "MultiDiscrete": _multi_discrete, "MultiBinary": _multi_binary,
    }  # fmt: skip
    kind = data.get("type")
    given = {key: value for key, value in data.items() if key != "type"}
    try:
        if kind == "Dict":
            return spaces.Dict(_subspaces(depth=depth, **given))
        if isinstance(kind, str) and kind in build:
            with np.errstate(over="raise"):
                return build[kind](**given)
    except (ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"The space {shown(data)} in the policy's description is none: {error}") from error
    raise ValueError(
        f"The kind of space {shown(kind)} in the policy's description is unknown; known: Dict, {', '.join(build)}."
    )


def _subspaces(spaces: Any, depth: int) -> list[tuple[str, Any]]:
    """Pairs, since Gymnasium sorts a mapping; format 1 has a mapping, whose order is the right one."""
    pairs = [list(pair) for pair in (spaces.items() if isinstance(spaces, Mapping) else spaces)]
    if not pairs or not all(len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise ValueError(f"The keys of a Dict space in the policy's description are {shown(spaces)}.")
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("A Dict space in the policy's description has one key twice.")
    return [(key, space_of(item, depth + 1)) for key, item in pairs]


def _box(shape: object, dtype: object, low: object, high: object) -> spaces.Box:
    kind, lengths = _dtype(dtype), _shape(shape)
    (lower, is_below), (upper, is_above) = (_bound(side, lengths, kind) for side in (low, high))
    box = spaces.Box(lower, upper, lengths, kind.type)
    if kind.kind == "i":  # an integer has no infinity, and Gymnasium remembers where it stood
        box.bounded_below, box.bounded_above = is_below, is_above
    return box


def _bound(value: object, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """One side of a Box, and where it is bounded; a single number stands for all."""
    if not isinstance(value, list):
        plain, is_bounded = _limit(value, dtype)
        return np.full(shape, plain, dtype), np.full(shape, is_bounded)
    limits = [_limit(item, dtype) for item in _flattened(value, shape)]
    values = np.array([limit for limit, _ in limits], dtype).reshape(shape)
    return values, np.array([is_bounded for _, is_bounded in limits], dtype=bool).reshape(shape)


def _limit(value: object, dtype: np.dtype) -> tuple[float, bool]:
    number = number_of(value)
    if dtype.kind == "f":
        return number, abs(number) != math.inf
    smallest, largest = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if abs(number) == math.inf and dtype.kind == "i":
        return smallest if number < 0 else largest, False
    if not smallest <= number <= largest or number != int(number):
        raise ValueError(f"The bound {shown(value)} of a Box in the policy's description is no {dtype}.")
    return int(number), True


def _discrete(n: object, start: object = 0, dtype: object = "int64") -> spaces.Discrete:
    kind = _dtype(dtype)
    if type(n) is not int or type(start) is not int or not 0 < n <= MAX_ELEMENTS:
        raise ValueError(f"A Discrete space in the policy's description has n {shown(n)} and start {shown(start)}.")
    np.array([n, start, start + n - 1], kind)  # refuses what does not fit
    more: dict[str, Any] = {} if kind == np.int64 else {"dtype": kind.type}  # older Gymnasiums know no other
    return spaces.Discrete(n, start=start, **more)


def _multi_discrete(nvec: object, start: object = None, dtype: object = "int64") -> spaces.MultiDiscrete:
    kind, counts = _dtype(dtype), np.array(nvec)
    begin = np.zeros_like(counts) if start is None else np.array(start)
    if counts.dtype.kind not in "iu" or begin.dtype.kind not in "iu" or counts.shape != begin.shape:
        raise ValueError(
            f"A MultiDiscrete space in the policy's description has nvec {shown(nvec)} and start {shown(start)}."
        )
    if not counts.size or counts.sum(dtype=float) > MAX_ELEMENTS:
        raise ValueError(
            f"A MultiDiscrete space in the policy's description has nvec {shown(nvec)}: none, or too many."
        )
    whole = [np.array(values.tolist(), kind) for values in (counts, begin)]  # refuses what does not fit
    return spaces.MultiDiscrete(whole[0], dtype=kind.type, start=whole[1])


def _multi_binary(n: object) -> spaces.MultiBinary:
    lengths = _shape(n if isinstance(n, list) else [n])
    return spaces.MultiBinary(list(lengths) if isinstance(n, list) else lengths[0])


def _dtype(name: object) -> np.dtype:
    if name not in _DTYPES:
        raise ValueError(f"The dtype {shown(name)} in the policy's description is not among {', '.join(_DTYPES)}.")
    found: np.dtype = np.dtype(name)
    return found


def _shape(lengths: Any) -> tuple[int, ...]:
    whole = isinstance(lengths, list) and all(type(length) is int and length >= 0 for length in lengths)
    if not whole or len(lengths) > _MAX_AXES or math.prod(lengths) > MAX_ELEMENTS:
        raise ValueError(
            f"The shape {shown(lengths)} in the policy's description is not one of at most {MAX_ELEMENTS} elements."
        )
    return tuple(lengths)


def _flattened(value: object, shape: tuple[int, ...]) -> list[object]:
    if not shape:
        return [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        raise ValueError(f"The bounds {shown(value)} in the policy's description do not have the shape {shape}.")
    return [item for part in value for item in _flattened(part, shape[1:])]


def number_of(value: object) -> int | float:
    """Return a number; infinities are written as text, since JSON has none.

    Raises:
        ValueError: If it is none.
    """
    if value in ("inf", "-inf"):
        return float(value)
    if not isinstance(value, int | float) or value != value:
        raise ValueError(f"{shown(value)} in the policy's description is no number.")
    return value


def shown(value: object) -> str:
    """Return a value for a message, short."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
