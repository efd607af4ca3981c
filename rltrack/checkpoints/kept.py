"""Which versions were left where they are: ``kept.json`` in their folder, so that one that was removed by hand is noticed.

It is written after a version came and before one goes, so that every number in it has its folder, unless that was removed by
hand. Without the file, or where it is damaged, nothing is claimed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from rltrack import damage
from rltrack.checkpoints.version import number_of
from rltrack.sealed import seal_json, unseal_json

_FILE = "kept.json"


def write_kept(folder: Path, numbers: Collection[int]) -> None:
    """Write down the numbers of the versions that stay; where that fails, no file is left, so that nothing is claimed."""
    path, temporary = folder / _FILE, folder / f".tmp-{_FILE}"
    try:
        temporary.write_text(seal_json({"versions": sorted(numbers)}), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        for leftover in (temporary, path):
            with contextlib.suppress(OSError):
                leftover.unlink()


def what_is_gone(folder: Path) -> list[str]:
    """Say of each version that was to stay and has no folder what is still good and what to do.

    It is also right while a process writes: what is in the file before and after a look at the folder was there.
    """
    before = _read(folder)
    if not before:
        return []
    try:
        there = {number_of(path): path.name for path in folder.iterdir() if number_of(path)}
    except OSError:
        return []
    good = ", ".join(name for _, name in sorted(there.items())) or "no version"
    return [
        f"The version v{number} is missing: its folder {folder / f'v{number:06d}'} was removed, not by rltrack. Still there: "
        f"{good}. Put the folder back from a backup; or accept its loss: rltrack checkpoints {folder.parent.name} --prune."
        for number in sorted((before & _read(folder)) - set(there))
    ]


def report_gone(folder: Path) -> None:
    """Report what is gone; see `what_is_gone`."""
    for text in what_is_gone(folder):
        damage.report(text)


def _read(folder: Path) -> set[int]:
    try:
        numbers = unseal_json((folder / _FILE).read_bytes())["versions"]
        return {number for number in numbers if type(number) is int}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
