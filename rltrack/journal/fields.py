"""What the fields of a journal's records may hold. A journal is data that others may have written: its readers rely on this.

A field that is known by its name has the same type everywhere, and each kind of record has the fields that readers of it
need. Kinds and fields that are not known here are left alone: a newer rltrack may have written them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rltrack.text import shortened

NUMERIC_FIELDS = (
    "values",
    "returns",
    "lengths",
    "mean",
    "std",
    "median",
    "iqm",
    "interval",
    "score",
    "numbers",
    "min",
    "max",
    "mean_return",
    "seconds",
    "infos",
    "mean_infos",
)
"""Fields with nothing but numbers in them: NaN and infinities, which JSON does not have, stand there as text and need no mark."""

TEXT_TO_FLOAT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_DEPTH = 16
_LIMIT = 2**63


def numeric(value: Any, depth: int = 0) -> Any:
    """Return a value with the texts for NaN and infinities as numbers.

    Raises:
        ValueError: If it is nested deeper than anything that is written.
    """
    if isinstance(value, str):
        return TEXT_TO_FLOAT.get(value, value)
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {key: item if type(item) is float else numeric(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [item if type(item) is float else numeric(item, depth + 1) for item in value]
    return value


def check_record(record: Mapping[str, Any]) -> None:
    """Refuse a record whose fields cannot be what training wrote.

    Raises:
        ValueError: With the field and what it holds.
    """
    kind = record.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"'kind' is {shortened(kind, 60)}; it must be a text")
    missing = [field for field in ("time", *_NEEDED.get(kind, ())) if field not in record]
    if missing:
        raise ValueError(f"a record of the kind {shortened(kind, 60)} lacks {', '.join(missing)}")
    for field, value in record.items():
        found = _FIELDS.get(field)
        if found is not None and not found[0](value):
            raise ValueError(f"'{field}' is {shortened(value, 60)}; it must be {found[1]}")
    if "seq" in record and "step" not in record:
        raise ValueError("a record with a number lacks its step")
    if kind == "episodes" and not len(record["steps"]) == len(record["returns"]) == len(record["lengths"]):
        raise ValueError("'steps', 'returns' and 'lengths' of its episodes are not equally many")


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse metrics that could not be read back.

    Raises:
        TypeError: With the key.
    """
    for key, value in values.items():
        if value is None or isinstance(value, str | bytes | list | tuple | dict):
            raise TypeError(
                f"The metric '{key}' is {shortened(value, 60)}. Only numbers can be recorded; leave it out."
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LIMIT


def _is_number(value: Any) -> bool:
    return type(value) is float or isinstance(value, int)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_tier(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key, ""), str) for key in ("tier", "reason"))


def _is_choices(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, dict) and "chosen" in item and isinstance(item.get("reason"), str) for item in value.values()
    )


_Check = tuple[Callable[[Any], bool], str]
_COUNT: _Check = (_is_count, "a whole number from 0")
_NUMBER: _Check = (_is_number, "a number")
_TEXT: _Check = (_is_text, "a text")
_FLAG: _Check = (lambda value: isinstance(value, bool), "true or false")
_MAPPING: _Check = (_is_mapping, "a mapping")
_COUNTS: _Check = (_is_list_of(_is_count), "a list of whole numbers from 0")
_MAYBE_TEXT: _Check = (_is_optional(_is_text), "a text or null")
_MAYBE_MAPPING: _Check = (_is_optional(_is_mapping), "a mapping or null")
_MAYBE_NUMBER: _Check = (_is_optional(_is_number), "a number or null")

_FIELDS: dict[str, _Check] = {
    "seq": (lambda value: _is_count(value) and value > 0, "a whole number from 1"),
    "time": (lambda value: _is_number(value) and math.isfinite(value), "Unix seconds"),
    "step": _COUNT,
    "values": (
        lambda value: (
            isinstance(value, dict) and all(type(item) is float or isinstance(item, int) for item in value.values())
        ),
        "numbers by their keys",
    ),
    "infos": (
        lambda value: isinstance(value, dict) and all(map(_is_list_of(_is_optional(_is_number)), value.values())),
        "lists of numbers or nulls by key",
    ),
    "mean_infos": (
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
        "numbers by their keys",
    ),
    "excluded": (
        lambda value: isinstance(value, dict) and all(map(_is_list_of(_is_text), value.values())),
        "lists of keys by sink",
    ),
    "returns": (_is_list_of(_is_number), "a list of numbers"),
    "lengths": _COUNTS,
    "steps": _COUNTS,
    "mean": _NUMBER,
    "std": _NUMBER,
    "median": _NUMBER,
    "iqm": _NUMBER,
    "interval": (lambda value: _is_list_of(_is_number)(value) and len(value) == 2, "two numbers"),
    "decision": _TEXT,
    "reason": _TEXT,
    "numbers": _MAPPING,
    "run_id": _TEXT,
    "identity": _MAPPING,
    "agent": _MAYBE_MAPPING,
    "policy": _MAYBE_MAPPING,
    "version": _TEXT,
    "score": _MAYBE_NUMBER,
    "resumable": _FLAG,
    "number": _COUNT,
    "resumed_from": _MAYBE_TEXT,
    "env_steps": _COUNT,
    "exact": _FLAG,
    "missing": (_is_list_of(_is_text), "a list of texts"),
    "environments": (_is_optional(_is_tier), "a tier with its reason, or null"),
    "choices": (_is_optional(_is_choices), "choices with their reasons, or null"),
    "versions": _MAPPING,
    "host": _TEXT,
    "hash_seed": _TEXT,
    "pid": _COUNT,
    "message": _TEXT,
    "name": _TEXT,
    "error": _TEXT,
    "state": _TEXT,
    "episodes": _COUNT,
    "seconds": _NUMBER,
    "mean_return": _MAYBE_NUMBER,
    "goes_on": _FLAG,
    "reproduced": _FLAG,
    "result": _TEXT,
}

_NEEDED: dict[str, tuple[str, ...]] = {
    "metrics": ("step", "values"),
    "resources": ("step", "values"),
    "episodes": ("step", "steps", "returns", "lengths"),
    "evaluation": ("step", "returns", "lengths", "mean", "std", "median", "iqm", "interval"),
    "decision": ("step", "decision", "reason", "numbers"),
    "configuration": ("run_id",),
    "attempt": ("number", "exact", "environments", "host"),
    "checkpoint": ("step", "version"),
    "warning": ("message",),
    "signal": ("name",),
    "error": ("error", "message"),
    "reproduction": ("reproduced", "result"),
    "end": ("state", "reason", "env_steps", "mean_return", "goes_on"),
}
"""The fields that readers of a kind of record rely on."""
