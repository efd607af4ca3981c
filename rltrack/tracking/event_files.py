"""Whether TensorBoard's event files of a run are still as they were written."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rltrack import damage
from rltrack.runs import RunDirectory
from rltrack.tracking.bookmark import read_bookmark

_CHUNK = 1 << 20


def changed_file(folder: Path, state: Mapping[str, Any]) -> str | None:
    """Say which event file is gone or was changed, as the bookmark's `state` shows; None for none.

    Files that an older release wrote have no checksum: only their size is looked at.
    """
    sums = state.get("checksums")
    for name, size in state.get("files", {}).items():
        path = folder / name
        expected = sums.get(name) if isinstance(sums, dict) else None
        try:
            if path.is_symlink() or not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size < size:
                return f"{path} lost its end"
            if expected is not None and _checksum(path, size) != expected:
                return f"{path} was changed"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
    return None


def report_changed_events(run: RunDirectory) -> None:
    """Report event files that are gone or changed, and how to write them again; those of a running training are left out."""
    found = None if run.is_locked() or run.is_shipped() else lost_events(run)
    if found is not None:
        damage.report(
            f"{found}: TensorBoard shows the run {run.name} without it, or wrongly. The run's record and MLflow are not touched by "
            f"that. Written again from the journal: rltrack sync {run.name}",
            known=True,
        )


def lost_events(run: RunDirectory) -> str | None:
    """Say which event file of a run is gone or was changed; None for none, or where nothing was delivered."""
    bookmark = read_bookmark(run)
    return None if bookmark is None else changed_file(run.tensorboard, bookmark.tensorboard.state)


def _checksum(path: Path, size: int) -> int:
    value = 0
    with open(path, "rb") as file:
        while size > 0 and (data := file.read(min(_CHUNK, size))):
            value, size = zlib.crc32(data, value), size - len(data)
    return value
