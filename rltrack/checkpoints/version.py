"""A committed version, and the manifest that describes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from rltrack.checkpoints import segments
from rltrack.checkpoints.manifest import check_manifest
from rltrack.checkpoints.segments import Segment, StoredRing
from rltrack.errors import CheckpointCorrupt

FORMAT_VERSION = 1


MANIFEST = "manifest.json"


FOLDER = re.compile(r"(?:damaged-)?v([0-9]{6,12})")


DAMAGED = "damaged-"


@dataclass(frozen=True, slots=True)
class Version:
    """One committed checkpoint, as its manifest describes it.

    Attributes:
        number: 1, 2, 3, … in the order of committing.
        path: Its folder.
        env_steps: Env steps of the run at its boundary.
        parts: Which parts of the state it holds.
        score: Mean return of the evaluation of this policy, in reward units; None without one.
        created: Unix time, seconds.
        details: The rest of the manifest.
    """

    number: int
    path: Path
    env_steps: int
    parts: tuple[str, ...]
    score: float | None
    created: float
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``v12``."""
        return f"v{self.number}"

    @property
    def is_resumable(self) -> bool:
        """Whether training can resume from it, rather than only its policy act."""
        return "loop" in self.parts

    @property
    def run_id(self) -> str:
        """Id of the run that it belongs to."""
        return str(self._detail("run_id"))

    @property
    def attempt(self) -> int:
        """Which attempt at the run wrote it."""
        return int(self._detail("attempt"))

    @property
    def journal(self) -> Mapping[str, int]:
        """Where the journal stood: ``next_seq`` and ``bytes``."""
        position: Mapping[str, int] = self._detail("journal")
        return position

    def _detail(self, name: str) -> Any:
        if name not in self.details:
            raise CheckpointCorrupt(
                f"{self.path / MANIFEST} lacks '{name}': this version was not written by a training of rltrack, which cannot go "
                "on from it."
            )
        return self.details[name]

    @property
    def size_bytes(self) -> int:
        """Size of its own files and of the segments that it refers to."""
        own = sum(int(entry["bytes"]) for entry in self.details.get("files", {}).values())
        return own + sum(segment.bytes for segment in self.segments())

    def rings(self) -> dict[str, StoredRing]:
        """Return its rings by ``part:path``."""
        folder = self.path.parent / segments.FOLDER
        return {key: StoredRing.of(folder, entry) for key, entry in self.details.get("rings", {}).items()}

    def segments(self) -> list[Segment]:
        """Return the segments that it refers to."""
        return [segment for ring in self.rings().values() for segment in ring.segments]


def seal(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as JSON with a SHA-256 of itself."""
    return orjson.dumps({**manifest, "sha256": _sha256_of(manifest)}, option=orjson.OPT_INDENT_2)


def unseal(data: bytes) -> dict[str, Any]:
    """Return what `seal` took.

    Raises:
        CheckpointCorrupt: If it does not match its SHA-256, is of a newer format, or holds what no rltrack wrote.
    """
    try:
        manifest: Any = orjson.loads(data)
    except ValueError as error:
        raise CheckpointCorrupt(f"it is no JSON: {error}.") from None
    if isinstance(manifest, dict):
        found = manifest.get("format")
        if type(found) is int and found > FORMAT_VERSION:
            raise CheckpointCorrupt(
                f"format {found} is newer than this rltrack, which reads up to {FORMAT_VERSION}; install a newer one."
            )
        sealed = manifest.pop("sha256", None)
        try:
            matches = sealed == _sha256_of(manifest)
        except TypeError as error:  # nested deeper than orjson writes
            raise CheckpointCorrupt(f"it cannot be what was written: {error}.") from None
        if not matches:
            raise CheckpointCorrupt("it does not match its own SHA-256.")
    check_manifest(manifest)
    return dict(manifest)


def _sha256_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)).hexdigest()


def number_of(path: Path) -> int:
    """Return the number in the name of a version's folder; 0 if it is none."""
    match = FOLDER.fullmatch(path.name)
    return int(match[1]) if match else 0


def version_of(path: Path, manifest: Mapping[str, Any]) -> Version:
    """Return the version that a manifest describes."""
    return Version(
        number=int(manifest["number"]),
        path=path,
        env_steps=int(manifest["env_steps"]),
        parts=tuple(manifest["parts"]),
        score=manifest["score"],
        created=float(manifest["created"]),
        details=manifest,
    )
