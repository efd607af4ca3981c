"""Committed versions of a run: written whole or not at all, verified when read.

``checkpoints/v000012/`` holds a manifest and, for each part of the state, ``<part>.json`` (skeleton) and
``<part>.safetensors`` (arrays); the rows of replay buffers are in ``checkpoints/segments/``. A version is written to a
temporary folder, fsynced, renamed, and the folder fsynced: what has no valid manifest, or a file that does not match its
SHA-256, is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from rltrack import damage
from rltrack.checkpoints import encoding, segments
from rltrack.checkpoints.encoding import State
from rltrack.checkpoints.kept import report_gone, write_kept
from rltrack.checkpoints.manifest import is_file_name
from rltrack.checkpoints.pins import read_pins, write_pins
from rltrack.checkpoints.retention import Retention, best_first
from rltrack.checkpoints.segments import NewRows, Segment, StoredRing
from rltrack.checkpoints.version import DAMAGED, FORMAT_VERSION, MANIFEST, Version, number_of, seal, unseal, version_of
from rltrack.errors import CheckpointCorrupt, CheckpointFailed, CheckpointNotFound, ConfigurationError
from rltrack.files import delete_path, fsync_directory, write_bytes

_logger = logging.getLogger("rltrack")

_MAX_MANIFEST_BYTES = 1 << 26
_SEGMENT = re.compile(r"(?:\.tmp-)?v[0-9]{6,12}-.+\.safetensors")
_VERSION = re.compile(r"v0*([0-9]{1,12})")
_ENV_STEPS = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version as bytes, ready to be written by another thread."""

    number: int
    env_steps: int
    score: float | None
    parts: tuple[str, ...]
    files: Mapping[str, bytes]
    rings: Mapping[str, NewRows]
    details: Mapping[str, Any]


class CheckpointStore:
    """The versions of one run, in a folder. One process writes; `prepare` and `write` are called in the same order.

    Args:
        folder: Where the versions are; made when the first one is committed.
        retention: What to keep after each commit.
    """

    def __init__(self, folder: str | Path, retention: Retention | None = None) -> None:
        self.folder = Path(folder)
        self.retention = retention or Retention()
        self._number: int | None = None
        self._stored: dict[str, tuple[Segment, ...]] = {}
        self._promised: dict[int, set[str]] = {}  # segments that prepared versions will refer to

    # ---- writing ----

    def commit(
        self, state: State, *, env_steps: int, score: float | None = None, details: Mapping[str, Any] | None = None
    ) -> Version:
        """Write a version, and delete what it supersedes; see `prepare` and `write`."""
        return self.write(self.prepare(state, env_steps=env_steps, score=score, details=details))

    def prepare(
        self, state: State, *, env_steps: int, score: float | None = None, details: Mapping[str, Any] | None = None
    ) -> Prepared:
        """Serialise a state: all that training must wait for.

        Args:
            state: Parts of the state; with a part ``loop`` it can be resumed.
            env_steps: Env steps of the run.
            score: Mean return of an evaluation of exactly this policy.
            details: More for the manifest, as plain data.

        Raises:
            ConfigurationError: If a part has a name that cannot be a file's.
            TypeError: If a leaf cannot be stored as data; its path is named.
        """
        for part in state:
            if not is_file_name(f"{part}.safetensors"):
                raise ConfigurationError(
                    f"capture() returned a part {part!r}. A part becomes a file of that name: use printable characters without "
                    "slashes, not beginning with a dot."
                )
        files: dict[str, bytes] = {}
        rings: dict[str, NewRows] = {}
        for part, tree in state.items():
            encoded = encoding.encode(tree)
            files[f"{part}.json"], files[f"{part}.safetensors"] = encoded.skeleton, encoded.tensors
            for path, ring in encoded.rings.items():
                rings[f"{part}:{path}"] = segments.new_rows(ring, self._stored.get(f"{part}:{path}", ()))
        if (number := self._next_number()) == 1:  # now, as a run's folder that was removed meanwhile is not made again
            with contextlib.suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
        self._promised[number] = {segment.file for new in rings.values() for segment in new.kept}
        return Prepared(number, env_steps, score, tuple(state), files, rings, details or {})

    def write(self, prepared: Prepared) -> Version:
        """Write a prepared version, and delete what it supersedes.

        Raises:
            CheckpointFailed: If it cannot be written; the versions before it are untouched.
        """
        try:
            version = self._write(prepared)
        except (OSError, CheckpointCorrupt) as error:
            self._stored = {}
            raise CheckpointFailed(
                f"The checkpoint at {prepared.env_steps} env steps could not be written to {self.folder}: {error}. Earlier "
                "versions are untouched. Free some space or repair the folder, then resume the run."
            ) from error
        finally:
            self._promised.pop(prepared.number, None)
        try:
            self.prune()
        except (OSError, CheckpointCorrupt) as error:  # the version is there all the same
            _logger.warning("Superseded versions in %s were not deleted: %s", self.folder, error)
        return version

    def _write(self, prepared: Prepared) -> Version:
        self.folder.mkdir(exist_ok=True)
        for leftover in (*self.folder.glob(".tmp-*"), *self._own_segments(".tmp-*")):
            delete_path(leftover)
        temporary = self.folder / f".tmp-v{prepared.number:06d}"
        temporary.mkdir()
        try:
            rings = self._write_rings(prepared)
            files: dict[str, dict[str, Any]] = {}
            for name, data in prepared.files.items():
                write_bytes(temporary / name, data)
                files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            manifest = {
                "format": FORMAT_VERSION,
                "number": prepared.number,
                "env_steps": prepared.env_steps,
                "score": prepared.score,
                "created": time.time(),
                "parts": list(prepared.parts),
                "files": files,
                "rings": {key: ring.entry() for key, ring in rings.items()},
                **prepared.details,
            }
            write_bytes(temporary / MANIFEST, seal(manifest))
            fsync_directory(temporary)
            final = self.folder / f"v{prepared.number:06d}"
            os.rename(temporary, final)
            fsync_directory(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._stored |= {key: ring.segments for key, ring in rings.items()}
        return version_of(final, orjson.loads(orjson.dumps(manifest)))

    def _write_rings(self, prepared: Prepared) -> dict[str, StoredRing]:
        folder = self._segments_folder
        found: dict[str, StoredRing] = {}
        for index, (key, new) in enumerate(prepared.rings.items()):
            folder.mkdir(exist_ok=True)
            stored = list(new.kept)
            missing = [segment.file for segment in stored if not (folder / segment.file).is_file()]
            if missing:
                raise CheckpointCorrupt(f"{folder / missing[0]} is missing")
            stem = f"v{prepared.number:06d}-{index}"
            if new.data is not None:
                stored.append(self._write_segment(f"{stem}.safetensors", new.data, new.first, new.last))
            while (at := segments.pair_to_merge(stored)) is not None:
                one, other = stored[at : at + 2]
                name = f"{stem}-{one.first}-{other.last}.safetensors"
                data = segments.merged(folder, one, other)
                stored[at : at + 2] = [self._write_segment(name, data, one.first, other.last)]
            first = max(0, new.last - new.capacity)
            found[key] = StoredRing(folder, tuple(stored), first, new.last, new.capacity)
            fsync_directory(folder)
        return found

    def _write_segment(self, name: str, data: bytes, first: int, last: int) -> Segment:
        temporary = self._segments_folder / f".tmp-{name}"
        write_bytes(temporary, data)
        os.rename(temporary, self._segments_folder / name)
        return segments.segment_of(name, data, first, last)

    def _next_number(self) -> int:
        if self._number is None:
            self._number = max(map(number_of, self.folder.iterdir() if self.folder.is_dir() else ()), default=0)
        self._number += 1
        return self._number

    @property
    def _segments_folder(self) -> Path:
        return self.folder / segments.FOLDER

    # ---- keeping ----

    def prune(self) -> list[Version]:
        """Delete the versions that are superseded and the segments that no version refers to; return the versions."""
        versions = self.versions()
        superseded = self.retention.superseded(versions, self.pinned())
        self.delete(superseded)
        return superseded

    def delete(self, versions: Collection[Version]) -> None:
        """Delete these versions, and the segments that no other refers to.

        Raises:
            OSError: If something cannot be deleted; what was begun is whole or gone.
        """
        write_kept(self.folder, {number_of(path) for path in self.folders()} - {old.number for old in versions})
        for old in versions:
            doomed = old.path.with_name(f".tmp-{old.path.name}")
            os.rename(old.path, doomed)  # in one step, so that no half of a version is ever seen
            delete_path(doomed)
        used = {segment.file for version in self.versions() for segment in version.segments()}
        used |= {file for promised in list(self._promised.values()) for file in promised}
        if not self.problems():
            for path in self._own_segments("*"):
                if path.name not in used:
                    path.unlink()

    def _own_segments(self, pattern: str) -> list[Path]:
        """Files that were written here as segments; none behind a link, which may lead anywhere."""
        folder = self._segments_folder
        if folder.is_symlink() or not folder.is_dir():
            return []
        return [path for path in folder.glob(pattern) if _SEGMENT.fullmatch(path.name) and not path.is_dir()]

    def pinned(self) -> set[int]:
        """Return the numbers of the versions that are kept until they are unpinned.

        Raises:
            CheckpointCorrupt: If the file that says so cannot be read.
        """
        return read_pins(self.folder)

    def pin(self, version: Version) -> None:
        """Keep a version whatever retention says."""
        write_pins(self.folder, self.pinned() | {version.number})

    def unpin(self, version: Version) -> None:
        """Leave a version to retention again."""
        write_pins(self.folder, self.pinned() - {version.number})

    # ---- finding and reading ----

    def versions(self) -> list[Version]:
        """Return the versions with a valid manifest, oldest first; the others are reported. Their other files are not verified."""
        found = self._scan()
        for item in found:
            if isinstance(item, CheckpointCorrupt):
                damage.report(f"A version is damaged: {item} The others are not. Put it back, or delete its folder.")
        report_gone(self.folder)
        return [item for item in found if isinstance(item, Version)]

    def folders(self) -> list[Path]:
        """Return the folders of versions, whether they can be read or not, oldest first."""
        try:
            paths = [path for path in self.folder.iterdir() if number_of(path) and not path.name.startswith(DAMAGED)]
        except OSError:
            return []
        return sorted(paths, key=number_of)

    def find(self, selector: str | int = "last") -> Version:
        """Return the version that a selector names.

        Args:
            selector: ``last``, ``best``, ``v12``, or a number of env steps.

        Raises:
            CheckpointNotFound: If there is none; the committed ones are named.
        """
        versions = self.versions()
        text = str(selector)
        found: Sequence[Version]
        if text in ("last", "latest"):
            found = versions[-1:]
        elif text == "best":
            found = best_first(versions)[:1]
        elif match := _VERSION.fullmatch(text):
            found = [version for version in versions if version.number == int(match[1])]
        elif _ENV_STEPS.fullmatch(text):
            found = [version for version in versions if version.env_steps == int(text)][-1:]
        else:
            raise CheckpointNotFound(
                f"'{selector}' is not the name of a version. Use last, best, v12, or a number of env steps."
            )
        if not found:
            committed = ", ".join(f"{version.name} ({version.env_steps} env steps)" for version in versions) or "none"
            missing = "evaluated checkpoint" if text == "best" else f"checkpoint '{selector}'"
            raise CheckpointNotFound(f"No committed {missing} in {self.folder}; committed: {committed}.")
        return found[0]

    def read(self, version: Version, parts: Collection[str] | None = None) -> State:
        """Return parts of a version's state (all of them by default), verified against the manifest.

        Raises:
            CheckpointCorrupt: If a file is missing or does not match; it is named.
        """
        state: State = {}
        for part in version.parts if parts is None else [part for part in version.parts if part in parts]:
            skeleton, tensors = (_verified(version, f"{part}{suffix}") for suffix in (".json", ".safetensors"))
            rings = {key.partition(":")[2]: ring for key, ring in version.rings().items() if key.startswith(f"{part}:")}
            for ring in rings.values():
                ring.verify()
            try:
                state[part] = encoding.decode(skeleton, tensors, rings)
            except Exception as error:
                raise CheckpointCorrupt(f"{version.path / part} cannot be read: {error}.") from error
        return state

    def verify(self, version: Version) -> str | None:
        """Return what is wrong with a version, or None."""
        try:
            self.read(version)
        except CheckpointCorrupt as error:
            return str(error)
        return None

    def problems(self) -> list[str]:
        """Return what is wrong with folders that have no valid manifest."""
        return [str(found) for found in self._scan() if isinstance(found, CheckpointCorrupt)]

    def newest_good(self) -> tuple[Version, State, list[str]] | None:
        """Return the newest resumable version that verifies, its state, and what was wrong with newer ones.

        Raises:
            CheckpointCorrupt: If there are versions, and none verifies.
        """
        problems: list[str] = []
        for found in reversed(self._scan()):
            try:
                if isinstance(found, CheckpointCorrupt):
                    raise found
                if found.is_resumable:
                    return found, self.read(found), problems
            except CheckpointCorrupt as error:
                problems.append(str(error))
        if problems:
            raise CheckpointCorrupt(
                f"None of the resumable versions in {self.folder} verifies: {' '.join(problems)} Training cannot resume from "
                "here; start a new run."
            )
        return None

    def resume_from(self, version: Version) -> None:
        """Go on from a version: newer ones that do not verify are set aside, and its segments are built upon."""
        for found in self.folder.iterdir() if self.folder.is_dir() else ():
            if number_of(found) > version.number and not found.name.startswith(DAMAGED):
                newer = self._read_manifest(found)
                if isinstance(newer, CheckpointCorrupt) or self.verify(newer) is not None:
                    os.rename(found, found.with_name(f"{DAMAGED}{found.name}"))
        self._stored = {key: ring.segments for key, ring in version.rings().items()}

    def _scan(self) -> list[Version | CheckpointCorrupt]:
        if self.folder.exists() and not os.access(self.folder, os.R_OK | os.X_OK):
            raise CheckpointCorrupt(f"{self.folder} cannot be read: permission denied. Make it readable.")
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointCorrupt(
                f"{self.folder} is no folder: the run's versions are gone. Put them back from a backup."
            )
        scanned = [(path, self._read_manifest(path)) for path in self.folders()]
        # one that was superseded and deleted since the folders were listed is not damaged
        return [found for path, found in scanned if isinstance(found, Version) or os.path.lexists(path)]

    def _read_manifest(self, path: Path) -> Version | CheckpointCorrupt:
        try:
            manifest = unseal(segments.read_regular(path / MANIFEST, _MAX_MANIFEST_BYTES))
        except CheckpointCorrupt as error:
            return CheckpointCorrupt(f"{path / MANIFEST}: {error}")
        if manifest["number"] != number_of(path):
            return CheckpointCorrupt(f"{path} holds the manifest of v{manifest['number']}.")
        return version_of(path, manifest)


def _verified(version: Version, file: str) -> bytes:
    entry = version.details["files"].get(file)
    if entry is None:
        raise CheckpointCorrupt(f"{version.path / file} is not in its manifest.")
    return segments.read_verified(version.path / file, entry["sha256"], entry["bytes"])
