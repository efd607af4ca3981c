"""What a program logs, as the journal keeps it: names as text, values as floats, and who is not to get them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rltrack.journal.names import journal_name

_NO_SINKS = frozenset(("", "stdout", "log", "csv", "json"))
"""What SB3 calls its own output formats, and nothing at all."""
_NOT_NUMBERS = "cMmSU"
"""Kinds of numpy's types: complex, dates and durations, bytes, text."""


def number(value: Any) -> float | None:
    """Return a value as a float; None for what is no real number: text, complex numbers, arrays of several, objects.

    True is 1 and False is 0. Arrays and tensors with one element count as that element. What is too large for a float is
    infinite.
    """
    if type(value) is float:
        return value
    if isinstance(value, str | bytes | bytearray | complex) or value is np.ma.masked:
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind is not None and kind in _NOT_NUMBERS:
        return None
    try:
        if callable(getattr(value, "item", None)):  # numpy's, torch's and JAX's; ValueError for several elements
            value = value.item()
            if isinstance(value, str | bytes | complex):
                return None
        if isinstance(value, int | float):
            return float(value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, where a number is larger than a float
            return float(value)
    except OverflowError:
        return _infinity(value)
    except Exception:  # whatever the conversion of a third-party type raises
        return None


def _infinity(value: Any) -> float | None:
    try:
        return math.inf if value > 0 else -math.inf
    except Exception:
        return None


def episode_values(info: Mapping[str, Any]) -> dict[str, float]:
    """Return ``is_success``, and the Monitor's `info_keywords`, where these are numbers."""
    found = {key: value for key, value in (info.get("episode") or {}).items() if key not in ("r", "l", "t")}
    found |= {"is_success": info["is_success"]} if "is_success" in info else {}
    return {journal_name(key): known for key, value in found.items() if (known := number(value)) is not None}


def columns_of(episodes: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Return the values of several episodes by their key; None for an episode that has none."""
    keys = sorted({key for episode in episodes for key in episode})
    return {key: [episode.get(key) for episode in episodes] for key in keys}


def means_of(columns: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Return the mean of each key over the episodes that have a value."""
    known = {key: [value for value in values if value is not None] for key, values in columns.items()}
    with np.errstate(all="ignore"):
        return {key: float(np.mean(values)) for key, values in known.items() if values}


def info_title(key: str) -> str:
    """Return what the mean of an info is called in a table."""
    return "success rate" if key == "is_success" else f"mean {key}"


def info_metrics(group: str, means: Mapping[str, float], taken: Collection[str]) -> dict[str, float]:
    """Return means of infos as metrics: ``group/success_rate``, ``group/KEY``; ``group/info_KEY`` where that name is taken."""
    names = {key: f"{group}/{'success_rate' if key == 'is_success' else key}" for key in means}
    return {f"{group}/info_{key}" if name in taken else name: means[key] for key, name in names.items()}


def as_floats(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metrics as the journal takes them; what is no number stays, so that the journal names it when it refuses it."""
    found = {}
    for key, value in values.items():
        known = value if type(value) is float else number(value)
        found[key if type(key) is str and key.isascii() else journal_name(key)] = value if known is None else known
    return found


def logged(
    key_values: Mapping[str, Any], key_excluded: Mapping[str, Any], *, leave_out: Iterable[str] = ()
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Return the numbers of a dump of SB3's logger, and the keys that are kept from a sink, by the sink's name.

    Other outputs of SB3 that a value may be kept from (``stdout``, ``csv``, …) do not matter here.

    Args:
        key_values: What was recorded.
        key_excluded: SB3's ``exclude`` by key.
        leave_out: Keys, or beginnings of keys that end with a slash, that are not recorded.
    """
    leave_out = frozenset(leave_out)
    groups = tuple(item for item in leave_out if item.endswith("/"))
    values: dict[str, float] = {}
    excluded: dict[str, list[str]] = {}
    for given, value in key_values.items():
        key = given if type(given) is str and given.isascii() else journal_name(given)
        if key in leave_out or key.startswith(groups):
            continue
        found = value if type(value) is float else number(value)
        if found is None:
            continue
        values[key] = found
        exclude = key_excluded.get(given)
        for sink in sorted(_names_in(exclude) - _NO_SINKS) if exclude else ():
            excluded.setdefault(sink, []).append(key)
    return values, excluded


def _names_in(exclude: Any) -> set[str]:
    """SB3 makes a tuple of what it is given, also of a list."""
    if isinstance(exclude, str):
        return {exclude}
    names: set[str] = set()
    for item in exclude or ():
        names.update([item] if isinstance(item, str) else item or ())
    return names
