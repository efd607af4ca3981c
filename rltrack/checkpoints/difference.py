"""The first leaf in which two states differ, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

_WALL_CLOCK = ("elapsed_seconds", "seconds", "t", "time")


def leaves(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield path and value of each leaf of a state except wall-clock times; ring buffers by array, oldest row first."""
    if hasattr(tree, "chunks"):
        chunks = list(tree.chunks())
        for name in sorted(chunks[0][1]) if chunks else ():
            yield f"{path}/{name}", np.concatenate([rows[name] for _, rows in chunks])
        yield f"{path}/written", tree.written  # type: ignore[attr-defined]
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            if key not in _WALL_CLOCK and not str(key).startswith("time/"):
                yield from leaves(item, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from leaves(item, f"{path}/{index}")
    else:
        yield path.lstrip("/"), tree


def first_difference(
    one: object, other: object, names: tuple[str, str] = ("the first", "the second")
) -> tuple[int, str | None]:
    """Compare two states.

    Args:
        one: A nested state.
        other: Another one.
        names: What to call them in the text.

    Returns:
        Number of leaves that were compared, and a description of the first that differs; None if none does.
    """
    left, right = dict(leaves(one)), dict(leaves(other))
    for path in [*left, *(path for path in right if path not in left)]:
        if path not in left or path not in right:
            return len(left), f"{path} is in {names[0] if path in left else names[1]} only"
        if not same(left[path], right[path]):
            return len(left), f"{path}: {_contrast(left[path], right[path], names)}"
    return len(left), None


def same(one: object, other: object) -> bool:
    """Return whether two leaves have the same type and bits; NaN equals NaN."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def _contrast(one: object, other: object, names: tuple[str, str]) -> str:
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray) or one.shape != other.shape:
        return f"{_brief(one)} in {names[0]}, {_brief(other)} in {names[1]}"
    differing = np.argwhere(one != other)
    where = tuple(int(index) for index in differing[0]) if len(differing) else ()
    share = f"{len(differing)} of {one.size} values"
    return f"{share} differ, first at {list(where)}: {one[where]!r} in {names[0]}, {other[where]!r} in {names[1]}"


def _brief(value: object) -> str:
    return f"an array {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)[:200]
