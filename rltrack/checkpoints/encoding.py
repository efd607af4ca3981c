"""Nested state as plain data: a JSON skeleton, and arrays in safetensors. Reading it runs no code.

Leaves are ``None``, booleans, numbers, strings, bytes and numpy arrays or scalars, in dictionaries, lists and tuples; and
rings, whose rows are kept elsewhere (`segments`). Types come back as they were: tuples as tuples, integer keys as integers,
NaN and infinities as themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rltrack.checkpoints.rings import Ring

State = dict[str, Any]
"""Captured state by part. Leaves are numbers, strings, bytes, ``None`` and numpy arrays in dicts, lists and tuples, and
`rltrack.checkpoints.rings.Ring` for the rows of a ring buffer, of which a store keeps each once.

Known parts: ``policy`` (weights), ``optimizer``, ``normalization``, ``counters``, ``random``, ``buffers``, ``rollout``,
``environment``. The first three are what a policy needs to come back after a collapse; a checkpoint holds all of them.
``not_captured``, a text, is there only where something changed that the other parts lack: a resume is then labelled with it.
"""

_INTEGER = re.compile(r"-?[0-9]{1,4000}")
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Encoded(NamedTuple):
    """A nested state as bytes.

    Attributes:
        skeleton: JSON.
        tensors: Safetensors.
        rings: The rings in it, by path; their rows are not in the bytes.
    """

    skeleton: bytes
    tensors: bytes
    rings: Mapping[str, Ring]


def encode(tree: Any) -> Encoded:
    """Return a nested state as bytes.

    Raises:
        TypeError: If a leaf is of another type; its path is named. If a part holds itself, or is nested too deeply.
    """
    leaves = _Leaves({}, {})
    try:
        skeleton = _encode(tree, "", leaves)
    except RecursionError:
        raise TypeError("a part of it holds itself, or is nested too deeply") from None
    return Encoded(orjson.dumps(skeleton), save_tensors(leaves.arrays), leaves.rings)


def decode(skeleton: bytes, tensors: bytes, rings: Mapping[str, Any] | None = None) -> Any:
    """Return what `encode` took, with `rings` by their paths.

    Raises:
        ValueError: If it is nothing that `encode` writes. What else safetensors and numpy raise comes through.
    """
    return _decode(orjson.loads(skeleton), _Leaves(load_tensors(tensors), dict(rings or {})))


class _Leaves(NamedTuple):
    """Arrays and rings by their names. Each stands in a skeleton once, so that a small one cannot ask for much memory."""

    arrays: dict[str, np.ndarray]
    rings: dict[str, Any]

    def name_for(self, path: str) -> str:
        """Return a name that is free: ``a/b`` may be a key, or the key ``b`` below ``a``."""
        name = path or "/"
        while name in self.arrays or name in self.rings:
            name += "'"
        return name


def find_nonfinite(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the arrays and numbers that hold a NaN or an infinity, by their paths."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {at: found for key, item in items for at, found in find_nonfinite(item, f"{path}/{key}").items()}
    if isinstance(tree, np.ndarray) and np.issubdtype(tree.dtype, np.floating):
        return {} if np.isfinite(tree).all() else {path.lstrip("/"): tree}
    if isinstance(tree, float) and not math.isfinite(tree):
        return {path.lstrip("/"): tree}
    return {}


def _encode(value: Any, path: str, leaves: _Leaves) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Ring):
        key = leaves.name_for(path)
        leaves.rings[key] = value
        return {"$ring": key}
    if isinstance(value, np.ndarray | np.generic):  # before float, which np.float64 derives from
        key = leaves.name_for(path)
        if np.asarray(value).dtype == object:
            raise TypeError(f"{path}: an array of Python objects cannot be stored")
        leaves.arrays[key] = np.ascontiguousarray(value)
        return {"$array": key, "$shape": list(np.shape(value)), "$scalar": isinstance(value, np.generic)}
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else {"$int": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, bytes):
        key = leaves.name_for(path)
        leaves.arrays[key] = np.frombuffer(value, dtype=np.uint8)
        return {"$bytes": key}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{path}/{index}", leaves) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{path}/{index}", leaves) for index, item in enumerate(value)]
    if isinstance(value, dict):
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        if plain:
            return {key: _encode(item, f"{path}/{key}", leaves) for key, item in value.items()}
        pairs = [[_encode(key, path, leaves), _encode(item, f"{path}/{key}", leaves)] for key, item in value.items()]
        return {"$pairs": pairs}
    raise TypeError(f"{path or '/'}: a {type(value).__module__}.{type(value).__qualname__} cannot be stored as data")


def _decode(value: Any, leaves: _Leaves) -> Any:
    if isinstance(value, list):
        return [_decode(item, leaves) for item in value]
    if not isinstance(value, dict):
        return value
    special = [key for key in value if key.startswith("$")]
    if not special:
        return {key: _decode(item, leaves) for key, item in value.items()}
    content = value[special[0]]
    match sorted(value):
        case ["$array", "$scalar", "$shape"]:
            return _array(leaves, value)
        case ["$ring"]:
            return _taken(leaves.rings, content)
        case ["$bytes"]:
            return _taken(leaves.arrays, content).astype(np.uint8, casting="no", copy=False).tobytes()
        case ["$tuple"] if isinstance(content, list):
            return tuple(_decode(item, leaves) for item in content)
        case ["$pairs"] if isinstance(content, list) and all(isinstance(i, list) and len(i) == 2 for i in content):
            return {_decode(key, leaves): _decode(item, leaves) for key, item in content}
        case ["$float"] if isinstance(content, str) and content in _SPECIAL:
            return _SPECIAL[content]
        case ["$int"] if isinstance(content, str) and _INTEGER.fullmatch(content):
            return int(content)
    raise ValueError(f"{str(value)[:80]} is nothing that is written here")


def _array(leaves: _Leaves, value: Mapping[str, Any]) -> Any:
    shape, is_scalar = value["$shape"], value["$scalar"]
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{str(shape)[:80]} is no shape")
    if type(is_scalar) is not bool or (is_scalar and shape):
        raise ValueError(f"{str(is_scalar)[:80]} does not say whether an array of shape {str(shape)[:80]} is a number")
    array = _taken(leaves.arrays, value["$array"]).reshape(shape)
    return array[()] if is_scalar else array


def _taken(found: dict[str, Any], name: Any) -> Any:
    if not isinstance(name, str) or name not in found:
        raise ValueError(f"{str(name)[:80]!r} is missing, or asked for twice")
    return found.pop(name)
