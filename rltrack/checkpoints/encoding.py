"""Nested state as plain data: a JSON skeleton, and arrays in safetensors. Reading it runs no code.

Leaves are ``None``, booleans, numbers, strings, bytes and numpy arrays or scalars, in dictionaries, lists and tuples; and
rings, whose rows are kept elsewhere (`segments`). Types come back as they were: tuples as tuples, integer keys as integers,
NaN and infinities as themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rltrack.agents.rings import Ring

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
        TypeError: If a leaf is of another type; its path is named.
    """
    leaves = _Leaves({}, {})
    skeleton = _encode(tree, "", leaves)
    return Encoded(orjson.dumps(skeleton), save_tensors(leaves.arrays), leaves.rings)


def decode(skeleton: bytes, tensors: bytes, rings: Mapping[str, Any] | None = None) -> Any:
    """Return what `encode` took, with `rings` by their paths."""
    return _decode(orjson.loads(skeleton), _Leaves(load_tensors(tensors), dict(rings or {})))


class _Leaves(NamedTuple):
    arrays: dict[str, np.ndarray]
    rings: dict[str, Any]


def find_nonfinite(tree: Any, path: str = "") -> list[str]:
    """Return the paths of the arrays and numbers that hold a NaN or an infinity."""
    if isinstance(tree, dict):
        return [found for key, item in tree.items() for found in find_nonfinite(item, f"{path}/{key}")]
    if isinstance(tree, list | tuple):
        return [found for index, item in enumerate(tree) for found in find_nonfinite(item, f"{path}/{index}")]
    if isinstance(tree, np.ndarray) and np.issubdtype(tree.dtype, np.floating):
        return [] if np.isfinite(tree).all() else [path.lstrip("/")]
    if isinstance(tree, float) and not math.isfinite(tree):
        return [path.lstrip("/")]
    return []


def _encode(value: Any, path: str, leaves: _Leaves) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Ring):
        leaves.rings[path] = value
        return {"$ring": path}
    if isinstance(value, np.ndarray | np.generic):  # before float, which np.float64 derives from
        key = path or "/"
        if np.asarray(value).dtype == object:
            raise TypeError(f"{path}: an array of Python objects cannot be stored")
        leaves.arrays[key] = np.ascontiguousarray(value)
        return {"$array": key, "$shape": list(np.shape(value)), "$scalar": isinstance(value, np.generic)}
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else {"$int": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, bytes):
        key = path or "/"
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
    if "$array" in value:
        array = leaves.arrays[value["$array"]].reshape(value["$shape"])
        return array[()] if value["$scalar"] else array
    if "$ring" in value:
        return leaves.rings[value["$ring"]]
    if "$tuple" in value:
        return tuple(_decode(item, leaves) for item in value["$tuple"])
    if "$pairs" in value:
        return {_decode(key, leaves): _decode(item, leaves) for key, item in value["$pairs"]}
    if "$float" in value:
        return _SPECIAL[value["$float"]]
    if "$int" in value:
        return int(value["$int"])
    if "$bytes" in value:
        return leaves.arrays[value["$bytes"]].tobytes()
    return {key: _decode(item, leaves) for key, item in value.items()}
