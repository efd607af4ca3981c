"""What a version's manifest may hold. Others may have written it: readers of a version rely on this.

A manifest's own SHA-256 shows damage, not intent: anyone can compute it. So every name in it must be the name of a file in
the version's own folder, and every number one that training could have written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from rltrack.errors import CheckpointCorrupt
from rltrack.text import shortened

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMIT = 2**63
_MAX_NAME = 200


def check_manifest(manifest: Any) -> None:
    """Refuse a manifest that no rltrack wrote.

    Raises:
        CheckpointCorrupt: With the field and what it holds.
    """
    if not isinstance(manifest, dict):
        raise CheckpointCorrupt(f"it holds {shortened(manifest, 80)}, not a mapping.")
    _check_fields(manifest, _MANIFEST, "")
    if len(set(manifest["parts"])) != len(manifest["parts"]):
        raise CheckpointCorrupt(f"'parts' is {shortened(manifest['parts'], 80)}; each part stands there once.")
    for name, entry in manifest["files"].items():
        _check_fields(entry, _FILE, f"files.{name}")
    for key, ring in manifest["rings"].items():
        _check_fields(ring, _RING, f"rings.{key}")
        for segment in ring["segments"]:
            _check_fields(segment, _SEGMENT, f"rings.{key}.segments")
            if not segment["first"] < segment["last"]:
                raise CheckpointCorrupt(
                    f"rings.{key}: a segment's rows go from {segment['first']} to {segment['last']}."
                )
        if not 0 <= ring["written"] - ring["first"] <= ring["capacity"]:
            raise CheckpointCorrupt(
                f"rings.{key}: rows {ring['first']} to {ring['written']} do not fit a capacity of {ring['capacity']}."
            )
    journal = manifest.get("journal")
    if journal is not None:
        _check_fields(journal, _JOURNAL, "journal")


def is_file_name(name: Any) -> bool:
    """Whether a name is that of a file in the folder itself, which is not hidden."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= _MAX_NAME
        and name.isprintable()
        and not name.startswith(".")
        and "/" not in name
        and "\\" not in name
    )


def _check_fields(value: Any, fields: Mapping[str, _Check], where: str) -> None:
    if not isinstance(value, dict):
        raise CheckpointCorrupt(f"'{where}' is {shortened(value, 80)}; it must be a mapping.")
    for name, (is_good, wanted, needed) in fields.items():
        label = f"{where}.{name}".lstrip(".")
        if name not in value:
            if needed:
                raise CheckpointCorrupt(f"it lacks '{label}'.")
        elif not is_good(value[name]):
            raise CheckpointCorrupt(f"'{label}' is {shortened(value[name], 80)}; it must be {wanted}.")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LIMIT


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


_Check = tuple[Callable[[Any], bool], str, bool]
"""Whether a value is good, what it must be, and whether it must be there."""

_COUNT: _Check = (_is_count, "a whole number from 0", True)
_POSITIVE: _Check = (_is_positive, "a whole number from 1", True)
_DIGEST: _Check = (_is_sha256, "a SHA-256 in hexadecimal", True)
_MAPPING: _Check = (_is_mapping, "a mapping", True)
_DETAILS: _Check = (_is_mapping, "a mapping", False)
_NAME: _Check = (is_file_name, "the name of a file in the folder itself", True)

_MANIFEST: dict[str, _Check] = {
    "format": _POSITIVE,
    "number": _POSITIVE,
    "env_steps": _COUNT,
    "score": (lambda value: value is None or _is_number(value), "a number or null", True),
    "created": (lambda value: _is_number(value) and 0 <= value < 1e12, "Unix seconds", True),
    "parts": (
        lambda value: isinstance(value, list) and all(map(is_file_name, value)),
        "a list of names without slashes",
        True,
    ),
    "files": (
        lambda value: isinstance(value, dict) and all(map(is_file_name, value)),
        "a mapping whose keys are names of files in the folder itself",
        True,
    ),
    "rings": _MAPPING,
    "journal": _DETAILS,
    "run_id": (_is_text, "a text", False),
    "identity": (_is_text, "a text", False),
    "attempt": (_is_positive, "a whole number from 1", False),
    "versions": _DETAILS,
    "numerics": _DETAILS,
    "environments": _DETAILS,
}
_FILE: dict[str, _Check] = {"sha256": _DIGEST, "bytes": _COUNT}
_RING: dict[str, _Check] = {
    "first": _COUNT,
    "written": _COUNT,
    "capacity": _POSITIVE,
    "segments": (lambda value: isinstance(value, list), "a list", True),
}
_SEGMENT: dict[str, _Check] = {"file": _NAME, "first": _COUNT, "last": _POSITIVE, "sha256": _DIGEST, "bytes": _COUNT}
_JOURNAL: dict[str, _Check] = {"next_seq": _POSITIVE, "bytes": _COUNT}
