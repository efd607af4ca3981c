"""Rows of replay buffers, outside the versions: each row is written once, and counted by reference.

A segment is a safetensors file with the rows ``first <= r < last`` of a ring. A version's manifest lists the segments that
hold its rows; one that no version lists any more is deleted. So a checkpoint costs what is new, not what is old.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rltrack.checkpoints.rings import Ring
from rltrack.errors import CheckpointCorrupt

FOLDER = "segments"
MAX_SEGMENTS = 32
"""More of one ring are merged, smallest neighbours first, so that each row is rewritten a few times at most."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stored stretch of a ring.

    Attributes:
        file: Name in the folder of segments.
        first: Its first row.
        last: One more than its last row.
        sha256: Of the file.
        bytes: Size of the file.
    """

    file: str
    first: int
    last: int
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class NewRows:
    """What is to be written of a ring so that a version can refer to all of it.

    Attributes:
        kept: Segments that are stored already.
        data: The next segment, as bytes; None where no row is new.
        first: Its first row.
        last: One more than its last row.
        capacity: Of the ring.
    """

    kept: tuple[Segment, ...]
    data: bytes | None
    first: int
    last: int
    capacity: int


def new_rows(ring: Ring, stored: Sequence[Segment]) -> NewRows:
    """Copy what is not stored yet.

    Args:
        ring: The ring as it is now.
        stored: The segments of the newest version that refers to this ring.
    """
    kept = tuple(segment for segment in stored if segment.last > ring.first)
    reached = kept[-1].last if kept else ring.first
    if reached > ring.written:  # a ring that was reset
        kept, reached = (), ring.first
    data = save_tensors(ring.rows(reached, ring.written)) if reached < ring.written else None
    return NewRows(kept, data, reached, ring.written, ring.capacity)


def segment_of(file: str, data: bytes, first: int, last: int) -> Segment:
    """Describe a segment that is about to be written."""
    return Segment(file, first, last, hashlib.sha256(data).hexdigest(), len(data))


def pair_to_merge(segments: Sequence[Segment]) -> int | None:
    """Return the index of the first of two neighbours to merge, or None while there are few."""
    if len(segments) <= MAX_SEGMENTS:
        return None
    return min(range(len(segments) - 1), key=lambda index: segments[index + 1].last - segments[index].first)


def merged(folder: Path, one: Segment, other: Segment) -> bytes:
    """Return the bytes of one segment with the rows of two neighbours.

    Raises:
        CheckpointCorrupt: If one of them does not verify.
    """
    parts = [_rows(folder, segment) for segment in (one, other)]
    return save_tensors({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def verified(folder: Path, segment: Segment) -> bytes:
    """Read a segment.

    Raises:
        CheckpointCorrupt: If it is missing or does not match its SHA-256.
    """
    return read_verified(folder / segment.file, segment.sha256, segment.bytes)


def read_verified(path: Path, sha256: str, size: int) -> bytes:
    """Read a file.

    Raises:
        CheckpointCorrupt: If it is missing or does not match the size and the SHA-256.
    """
    data = read_regular(path, size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointCorrupt(f"{path} does not match the SHA-256 in its manifest.")
    return data


def read_regular(path: Path, limit: int) -> bytes:
    """Read a file, if it is one (a pipe would never end) and not larger than `limit` bytes.

    Raises:
        CheckpointCorrupt: If not.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointCorrupt(f"{path} is no regular file.")
        if found.st_size > limit:
            raise CheckpointCorrupt(f"{path} has {found.st_size:,} bytes; at most {limit:,} are expected.")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointCorrupt(f"{path} cannot be read: {error.strerror}.") from error


def _rows(folder: Path, segment: Segment) -> dict[str, np.ndarray]:
    """Return a segment's arrays.

    Raises:
        CheckpointCorrupt: If it does not verify, or does not hold the rows that the manifest says.
    """
    data = verified(folder, segment)
    try:
        rows: dict[str, np.ndarray] = load_tensors(data)
    except Exception as error:  # whatever safetensors makes of a header that it did not write
        raise CheckpointCorrupt(f"{folder / segment.file} cannot be read: {error}.") from None
    wanted = segment.last - segment.first
    for name, values in rows.items():
        if values.shape[:1] != (wanted,):
            raise CheckpointCorrupt(f"{folder / segment.file}: '{name}' has shape {values.shape}, not {wanted} rows.")
    return rows


@dataclass(frozen=True, slots=True)
class StoredRing:
    """The rows of a ring in a version; read one segment at a time."""

    folder: Path
    segments: tuple[Segment, ...]
    first: int
    written: int
    capacity: int

    @classmethod
    def of(cls, folder: Path, entry: Mapping[str, Any]) -> StoredRing:
        """From its entry in a manifest."""
        segments = tuple(Segment(**segment) for segment in entry["segments"])
        return cls(folder, segments, entry["first"], entry["written"], entry["capacity"])

    def entry(self) -> dict[str, Any]:
        """Its entry in a manifest."""
        return {
            "first": self.first,
            "written": self.written,
            "capacity": self.capacity,
            "segments": [asdict(segment) for segment in self.segments],
        }

    def verify(self) -> None:
        """Read everything once.

        Raises:
            CheckpointCorrupt: If rows are missing, or a segment does not match its SHA-256.
        """
        reached = self.first
        for segment in self.segments:
            if segment.first > reached:
                raise CheckpointCorrupt(
                    f"{self.folder}: rows {reached} to {segment.first} of a replay buffer are missing."
                )
            verified(self.folder, segment)
            reached = segment.last
        if reached < self.written:
            raise CheckpointCorrupt(f"{self.folder}: rows {reached} to {self.written} of a replay buffer are missing.")

    def chunks(self) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """Yield ``(first row, arrays)``, oldest first, without rows that were overwritten since.

        Raises:
            CheckpointCorrupt: If a segment does not verify.
        """
        for segment in self.segments:
            rows = _rows(self.folder, segment)
            skip = max(0, self.first - segment.first)
            yield segment.first + skip, {name: values[skip:] for name, values in rows.items()}
