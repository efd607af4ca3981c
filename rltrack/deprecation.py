"""Public names and configuration keys that have new ones: the old ones work for a release, with a warning, and then go."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Renamed:
    """Where something went.

    Attributes:
        to: Its new name; a dotted key for a configuration key.
        until: The release that no longer knows the old one.
    """

    to: str
    until: str


NAMES: dict[str, Renamed] = {}
"""Old names of ``rltrack`` itself."""

KEYS: dict[str, Renamed] = {}
"""Old dotted configuration keys, such as ``training.eval_every``."""


def warn(what: str, old: str, renamed: Renamed, stacklevel: int = 3) -> None:
    """Warn whoever uses an old name."""
    text = f"{what} '{old}' is now '{renamed.to}'; the old name goes in rltrack {renamed.until}."
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)


def with_new_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with its old keys under their new names; where both are given, the new one wins."""
    from rltrack.plain_data import flatten, with_values

    given = dict(flatten(data))
    moved = {key: renamed for key, renamed in KEYS.items() if key in given}
    if not moved:
        return dict(data)
    tree = with_values(data, {renamed.to: given[key] for key, renamed in moved.items() if renamed.to not in given})
    for key, renamed in moved.items():
        warn("Configuration key", key, renamed, stacklevel=6)
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        del node[last]
    return tree
