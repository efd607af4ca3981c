"""Committed versions of a run: written whole or not at all, verified when read.

``checkpoints/v000012/`` holds a manifest and, for each part of the state, ``<part>.json`` (skeleton) and
``<part>.safetensors`` (arrays). A version is written to a temporary folder, fsynced, renamed, and the folder fsynced:
what has no valid manifest, or a file that does not match its SHA-256, is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from rltrack.agents.protocol import State
from rltrack.checkpoints import encoding
from rltrack.checkpoints.retention import Retention, best_first
from rltrack.errors import CheckpointCorrupt, CheckpointFailed, CheckpointNotFound
from rltrack.files import fsync_directory, write_bytes

FORMAT_VERSION = 1
_FOLDER = re.compile(r"v(\d{6,})")


@dataclass(frozen=True, slots=True)
class Version:
    """One committed checkpoint, as its manifest describes it.

    Attributes:
        number: 1, 2, 3, … in the order of committing.
        path: Its folder.
        env_steps: Env steps of the run at its boundary.
        parts: Which parts of the state it holds.
        score: Mean return of the evaluation at its boundary, in reward units; None without one.
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
        """Whether training can go on from it, rather than only its policy act."""
        return "loop" in self.parts

    @property
    def size_bytes(self) -> int:
        """Size of its files."""
        return sum(int(entry["bytes"]) for entry in self.details.get("files", {}).values())


class CheckpointStore:
    """The versions of one run, in a folder.

    Args:
        folder: Where the versions are; made when the first one is committed.
        retention: What to keep after each commit.
    """

    def __init__(self, folder: str | Path, retention: Retention | None = None) -> None:
        self.folder = Path(folder)
        self.retention = retention or Retention()

    def commit(
        self, state: State, *, env_steps: int, score: float | None = None, details: Mapping[str, Any] | None = None
    ) -> Version:
        """Write a version, and delete what it supersedes.

        Args:
            state: Parts of the state; with a part ``loop`` it can be resumed.
            env_steps: Env steps of the run.
            score: Mean return of an evaluation of exactly this policy.
            details: More for the manifest, as plain data.

        Raises:
            CheckpointFailed: If it cannot be written; the versions before it are untouched.
        """
        try:
            version = self._write(state, env_steps, score, details or {})
        except OSError as error:
            raise CheckpointFailed(
                f"The checkpoint at {env_steps} env steps could not be written to {self.folder}: {error}. Earlier versions "
                "are untouched. Free some space or mend the folder, then resume the run."
            ) from error
        for old in self.retention.superseded(self.versions()):
            shutil.rmtree(old.path, ignore_errors=True)
        return version

    def _write(self, state: State, env_steps: int, score: float | None, details: Mapping[str, Any]) -> Version:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        number = max((_number_of(path) for path in self.folder.iterdir()), default=0) + 1
        temporary = self.folder / f".tmp-v{number:06d}"
        temporary.mkdir()
        files: dict[str, dict[str, Any]] = {}
        try:
            for part, tree in state.items():
                for suffix, data in zip((".json", ".safetensors"), encoding.encode(tree), strict=True):
                    write_bytes(temporary / f"{part}{suffix}", data)
                    files[f"{part}{suffix}"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            manifest = {
                "format": FORMAT_VERSION,
                "number": number,
                "env_steps": env_steps,
                "score": score,
                "created": time.time(),
                "parts": list(state),
                "files": files,
                **details,
            }
            write_bytes(temporary / "manifest.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
            fsync_directory(temporary)
            final = self.folder / f"v{number:06d}"
            os.rename(temporary, final)
            fsync_directory(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return _version(final, manifest)

    def versions(self) -> list[Version]:
        """Return the versions with a readable manifest, oldest first. Their files are not verified here."""
        if not self.folder.is_dir():
            return []
        found = []
        for path in sorted(self.folder.iterdir(), key=_number_of):
            if _number_of(path):
                try:
                    found.append(_version(path, orjson.loads((path / "manifest.json").read_bytes())))
                except (OSError, KeyError, TypeError, ValueError):
                    continue
        return found

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
        elif re.fullmatch(r"v0*\d+", text):
            found = [version for version in versions if version.number == int(text[1:])]
        elif text.isdigit():
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

    def read(self, version: Version, parts: Sequence[str] | None = None) -> State:
        """Return parts of a version's state (all of them by default), verified against the manifest.

        Raises:
            CheckpointCorrupt: If a file is missing or does not match; it is named.
        """
        state: State = {}
        for part in version.parts if parts is None else [part for part in parts if part in version.parts]:
            skeleton, tensors = (self._verified(version, f"{part}{suffix}") for suffix in (".json", ".safetensors"))
            try:
                state[part] = encoding.decode(skeleton, tensors)
            except Exception as error:
                raise CheckpointCorrupt(f"{version.path / part} cannot be read: {error}.") from error
        return state

    def newest_good(self) -> tuple[Version, State, list[str]] | None:
        """Return the newest resumable version that verifies, its state, and what was wrong with newer ones."""
        problems: list[str] = []
        for version in reversed([version for version in self.versions() if version.is_resumable]):
            try:
                return version, self.read(version), problems
            except CheckpointCorrupt as error:
                problems.append(str(error))
        if problems:
            raise CheckpointCorrupt(
                f"None of the resumable versions in {self.folder} verifies: {' '.join(problems)} Training cannot go on from "
                "here; start a new run."
            )
        return None

    def _verified(self, version: Version, file: str) -> bytes:
        entry = version.details["files"].get(file)
        try:
            data = (version.path / file).read_bytes()
        except OSError as error:
            raise CheckpointCorrupt(f"{version.path / file} cannot be read: {error.strerror}.") from error
        if entry is None or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointCorrupt(f"{version.path / file} does not match the SHA-256 in its manifest.")
        return data


def _number_of(path: Path) -> int:
    match = _FOLDER.fullmatch(path.name)
    return int(match[1]) if match else 0


def _version(path: Path, manifest: Mapping[str, Any]) -> Version:
    if manifest["format"] > FORMAT_VERSION:
        raise ValueError(f"format {manifest['format']} is newer than this rltrack")
    return Version(
        number=int(manifest["number"]),
        path=path,
        env_steps=int(manifest["env_steps"]),
        parts=tuple(manifest["parts"]),
        score=manifest["score"],
        created=float(manifest["created"]),
        details=manifest,
    )
