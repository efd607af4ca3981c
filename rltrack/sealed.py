"""Small files with a checksum of what they hold, so that a byte that changed is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_KEY = "sha256"
_COMMENT = "# sha256 of what follows: "


def seal_json(data: Mapping[str, Any]) -> str:
    """Return a mapping as JSON with a SHA-256 of itself."""
    return json.dumps({**data, _KEY: _sha256(data)})


def unseal_json(text: str | bytes) -> dict[str, Any]:
    """Return what `seal_json` took; a file that an older rltrack wrote, without a checksum, is taken as it is.

    Raises:
        ValueError: If it is no JSON object, or does not match its checksum.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(data, dict):
        raise ValueError("it holds no mapping")
    if _KEY in data and data.pop(_KEY) != _sha256(data):
        raise ValueError("it does not match its checksum")
    return data


def seal_text(text: str) -> str:
    """Return a text below a comment with its SHA-256."""
    return f"{_COMMENT}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_sealed(text: str) -> bool:
    """Whether a text begins as `seal_text` begins it."""
    return text.startswith(_COMMENT)


def unseal_text(text: str) -> str:
    """Return what `seal_text` took.

    Raises:
        ValueError: If it does not match its checksum.
    """
    first, _, rest = text.partition("\n")
    if first != f"{_COMMENT}{hashlib.sha256(rest.encode()).hexdigest()}":
        raise ValueError("it was changed since it was written: it does not match the checksum in its first line")
    return rest


def _sha256(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
