"""Which versions the user wants kept whatever retention says: ``pins.json`` in the folder of the versions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import orjson

from rltrack.checkpoints.segments import read_regular
from rltrack.errors import CheckpointCorrupt
from rltrack.files import replace_text
from rltrack.sealed import seal_json, unseal_json

_PINS = "pins.json"
_MAX_BYTES = 1 << 26


def read_pins(folder: Path) -> set[int]:
    """Return the numbers of the pinned versions.

    Raises:
        CheckpointCorrupt: If the file that says so cannot be read.
    """
    path = folder / _PINS
    if not path.exists():
        return set()
    remedy = "The versions themselves are not touched by that. Mend or delete it, and pin again what is to stay."
    data = read_regular(path, _MAX_BYTES)
    try:  # older releases wrote a list, without a checksum
        found = orjson.loads(data) if data.lstrip().startswith(b"[") else unseal_json(data).get("pins")
    except ValueError as error:
        raise CheckpointCorrupt(f"{path} is damaged: {error}. {remedy}") from None
    if not isinstance(found, list) or any(type(number) is not int or number < 1 for number in found):
        raise CheckpointCorrupt(f"{path} is not a list of versions' numbers. {remedy}")
    return set(found)


def write_pins(folder: Path, numbers: Collection[int]) -> None:
    """Write them, in one step."""
    replace_text(folder / _PINS, seal_json({"pins": sorted(numbers)}))
