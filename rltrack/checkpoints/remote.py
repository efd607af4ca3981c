"""A run's copy in a remote store: any fsspec URL, such as ``s3://bucket/prefix`` or ``file:///mnt/runs``.

::

    <url>/<run>/config.yaml
                attempts/000002.json                    made exclusively: one trainer per run, over all machines
                journal/000002-000000012345.jsonl       pieces of the journal, by attempt and first byte
                segments/<sha256>.safetensors           rows of replay buffers
                checkpoints/v000012-000002/             files first, then the manifest's signature, the manifest last

An attempt says from which version and from which byte of the journal it went on. What an earlier attempt wrote beyond that
does not count, so that a trainer that was thought dead can commit nothing. The signature (HMAC-SHA256 with a key from the
environment) covers the manifest, and with it every file: nothing from a remote store is unpickled without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import orjson
from fsspec.implementations.local import LocalFileSystem

from rltrack.checkpoints import segments
from rltrack.checkpoints.version import MANIFEST, Version, unseal
from rltrack.errors import CheckpointCorrupt, ConfigurationError, MissingExtra, RltrackError, RunTakenOver
from rltrack.files import write_bytes

KEY_VARIABLE = "RLTRACK_SIGNING_KEY"
MIN_KEY_LENGTH = 16
_ATTEMPT = re.compile(r"(\d{6})\.json")
_PIECE = re.compile(r"(\d{6})-(\d{12})\.jsonl")
_VERSION = re.compile(r"v(\d{6,})-(\d{6})")


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at a run, as the store knows it.

    Attributes:
        attempt: 1, 2, 3, …, over all machines.
        run_id: Of the run; another run of the same name has another.
        resumed_from: Number of the version from which it went on; 0 for none.
        journal_bytes: Size of the journal with which it began, in bytes, as far as the store has it.
        host: Where it runs.
    """

    attempt: int
    run_id: str
    resumed_from: int
    journal_bytes: int
    host: str


class RemoteRun:
    """One run in a remote store.

    Args:
        url: Of the store.
        name: The run's name.
        key: Signs manifests.
    """

    def __init__(self, url: str, name: str, key: bytes) -> None:
        self.url = f"{url.rstrip('/')}/{name}"
        self._key = key
        try:
            self._fs, self._path = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise MissingExtra(
                f"checkpoints.store '{url}': {error}. For s3:// install rltrack[s3]; local folders are file:///path."
            ) from None

    def check_writable(self) -> None:
        """Find out whether the store is there and takes what is written.

        Raises:
            ConfigurationError: If not, with the reason.
        """
        try:
            self._write("probe", b"")
            self._delete("probe")
        except Exception as error:  # whatever the store's client raises
            raise ConfigurationError(
                f"checkpoints.store: {self.url} cannot be written: {type(error).__name__}: {error}. See that it exists, and that "
                "the credentials allow to write to it."
            ) from None

    # ---- attempts ----

    def claims(self) -> list[Claim]:
        """Return the attempts so far, oldest first."""
        found = sorted(name for name in self._names("attempts") if _ATTEMPT.fullmatch(name))
        return [Claim(**orjson.loads(self._read(f"attempts/{name}"))) for name in found]

    def claim(self, claim: Claim) -> None:
        """Begin an attempt: from now on, earlier ones commit nothing.

        Raises:
            RunTakenOver: If another machine began the same attempt first.
        """
        data = orjson.dumps({name: getattr(claim, name) for name in Claim.__slots__})
        path = f"{self._path}/attempts/{claim.attempt:06d}.json"
        try:
            if isinstance(self._fs, LocalFileSystem):
                self._fs.makedirs(os.path.dirname(path), exist_ok=True)
                with self._fs.open(path, "xb") as file:
                    file.write(data)
            else:
                self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            raise RunTakenOver(
                f"Another machine began attempt {claim.attempt} of {self.url} at the same moment. Let it train, or try again."
            ) from None

    def check_is_newest(self, attempt: int) -> None:
        """Find out whether another machine went on meanwhile.

        Raises:
            RunTakenOver: If so.
        """
        newest = max((int(name[:6]) for name in self._names("attempts") if _ATTEMPT.fullmatch(name)), default=0)
        if newest > attempt:
            host = Claim(**orjson.loads(self._read(f"attempts/{newest:06d}.json"))).host
            raise RunTakenOver(
                f"Another trainer went on with {self.url}: attempt {newest} on {host}, this is attempt {attempt}. This one stops; "
                "what it wrote since does not count."
            )

    # ---- from here to there ----

    def upload_config(self, config: Path) -> None:
        """Copy the configuration."""
        self._write("config.yaml", config.read_bytes())

    def upload_journal(self, journal: Path, attempt: int, first: int, last: int) -> None:
        """Copy the bytes ``first <= b < last`` of the journal."""
        if last > first:
            with open(journal, "rb") as file:
                file.seek(first)
                self._write(f"journal/{attempt:06d}-{first:012d}.jsonl", file.read(last - first))

    def upload_version(self, version: Version, attempt: int) -> None:
        """Copy a version: what it refers to first, the manifest last, and only if nobody took over.

        Raises:
            RunTakenOver: If another machine went on with the run.
            FileNotFoundError: If it was superseded and deleted here meanwhile.
        """
        folder = f"checkpoints/v{version.number:06d}-{int(version.details['attempt']):06d}"
        there = set(self._names("segments"))
        for segment in version.segments():
            if f"{segment.sha256}.safetensors" not in there:
                data = (version.path.parent / segments.FOLDER / segment.file).read_bytes()
                self._write(f"segments/{segment.sha256}.safetensors", data)
        for name in version.details["files"]:
            self._write(f"{folder}/{name}", (version.path / name).read_bytes())
        manifest = (version.path / MANIFEST).read_bytes()
        self._write(f"{folder}/{MANIFEST}.hmac", self._signature(manifest))
        self.check_is_newest(attempt)
        self._write(f"{folder}/{MANIFEST}", manifest)

    def delete_except(self, kept: set[tuple[int, int]]) -> None:
        """Delete the versions that are not among the given ``(number, attempt)``, and segments that none refers to."""
        used: set[str] = set()
        for name in self._names("checkpoints"):
            match = _VERSION.fullmatch(name)
            if match is None:
                continue
            if (int(match[1]), int(match[2])) in kept:
                manifest = self._manifest(name)
                if manifest is None:
                    return  # on its way here or damaged: what it refers to is not known
                used |= _hashes(manifest)
                continue
            self._delete(f"checkpoints/{name}/{MANIFEST}")  # first, so that no half of a version is ever seen
            self._fs.rm(f"{self._path}/checkpoints/{name}", recursive=True)
        for name in self._names("segments"):
            if name.removesuffix(".safetensors") not in used:
                self._delete(f"segments/{name}")

    def remove(self) -> None:
        """Delete the whole copy; the attempts, which say that it exists, go last."""
        if self._fs.exists(self._path):
            items = self._fs.ls(self._path, detail=False)
            for item in sorted(items, key=lambda item: item.rstrip("/").endswith("/attempts")):
                self._fs.rm(item, recursive=True)
            with contextlib.suppress(FileNotFoundError):  # a bucket has no folders
                self._fs.rm(self._path, recursive=True)

    # ---- from there to here ----

    def versions(self) -> list[tuple[str, dict[str, Any]]]:
        """Return folder and manifest of every version that counts, oldest first.

        Raises:
            CheckpointCorrupt: If a signature does not hold.
        """
        claims = self.claims()
        found = []
        for name in sorted(self._names("checkpoints")):
            match = _VERSION.fullmatch(name)
            if match is None or not _counts(int(match[1]), int(match[2]), claims):
                continue
            manifest = self._manifest(name)
            if manifest is not None:
                found.append((name, manifest))
        return found

    def download(self, folder: Path, tell: Callable[[str], None]) -> int:
        """Copy the run to an empty folder: configuration, journal, versions.

        Returns:
            The size of the journal, in bytes.

        Raises:
            CheckpointCorrupt: If a signature does not hold.
        """
        write_bytes(folder / "config.yaml", self._read("config.yaml"))
        journal = self._journal()
        checkpoints = folder / "checkpoints"
        (checkpoints / segments.FOLDER).mkdir(parents=True)
        for name, manifest in self.versions():
            own = checkpoints / name.partition("-")[0]
            tell(f"fetching {own.name} ({int(manifest['env_steps']):,} env steps) from {self.url}")
            try:
                self._download_version(name, manifest, own)
            except FileNotFoundError:  # superseded there meanwhile, by a trainer that does not know yet
                shutil.rmtree(own)
        write_bytes(folder / "journal.jsonl", journal)  # last: with it, there is a run
        return len(journal)

    def _download_version(self, name: str, manifest: Mapping[str, Any], own: Path) -> None:
        own.mkdir()
        for entry in manifest["rings"].values():
            for segment in entry["segments"]:
                target = own.parent / segments.FOLDER / segment["file"]
                if not target.exists():
                    write_bytes(target, self._read(f"segments/{segment['sha256']}.safetensors"))
        for file in manifest["files"]:
            write_bytes(own / file, self._read(f"checkpoints/{name}/{file}"))
        write_bytes(own / MANIFEST, self._read(f"checkpoints/{name}/{MANIFEST}"))

    def _journal(self) -> bytes:
        """Put the pieces together; what an attempt wrote beyond where the next one began does not count."""
        pieces = [match for name in sorted(self._names("journal")) if (match := _PIECE.fullmatch(name))]
        journal = b""
        for claim in self.claims():
            journal = journal[: claim.journal_bytes]
            for match in pieces:
                if int(match[1]) == claim.attempt and int(match[2]) == len(journal):
                    journal += self._read(f"journal/{match[0]}")
        return journal

    def journal_bytes(self) -> int:
        """Return how much of the journal the store has."""
        return len(self._journal())

    # ---- inside ----

    def _manifest(self, name: str) -> dict[str, Any] | None:
        """Return a version's manifest; None where its commit did not come to its end."""
        try:
            data = self._read(f"checkpoints/{name}/{MANIFEST}")
            signature = self._read(f"checkpoints/{name}/{MANIFEST}.hmac")
            orjson.loads(data)
        except (FileNotFoundError, ValueError):  # a manifest that was cut short is no JSON
            return None
        if not hmac.compare_digest(signature, self._signature(data)):
            raise CheckpointCorrupt(
                f"The signature of {self.url}/checkpoints/{name} does not hold: it was written with another {KEY_VARIABLE}, or "
                "changed since. Its environment state is a pickle, which could run anything; it is not read. Set the key with "
                "which it was written."
            )
        try:
            return unseal(data)
        except (RltrackError, ValueError, KeyError) as error:
            raise CheckpointCorrupt(f"{self.url}/checkpoints/{name}/{MANIFEST}: {error}") from None

    def _signature(self, data: bytes) -> bytes:
        return hmac.new(self._key, data, hashlib.sha256).hexdigest().encode()

    def _names(self, folder: str) -> Iterator[str]:
        self._fs.invalidate_cache()
        try:
            yield from (
                os.path.basename(path.rstrip("/")) for path in self._fs.ls(f"{self._path}/{folder}", detail=False)
            )
        except FileNotFoundError:
            return

    def _read(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(f"{self._path}/{name}")
        return data

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._path}/{name}"
        if isinstance(self._fs, LocalFileSystem):
            self._fs.makedirs(os.path.dirname(path), exist_ok=True)
            write_bytes(Path(f"{path}.tmp"), data)
            os.replace(f"{path}.tmp", path)
        else:
            self._fs.pipe_file(path, data)

    def _delete(self, name: str) -> None:
        try:
            self._fs.rm_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return


def signing_key(environ: Mapping[str, str] = os.environ) -> bytes:
    """Return the key that signs manifests.

    Raises:
        ConfigurationError: If there is none, or it is too short.
    """
    key = environ.get(KEY_VARIABLE, "")
    if len(key) < MIN_KEY_LENGTH:
        found = f"it has {len(key)} characters" if key else "it is not set"
        raise ConfigurationError(
            f"checkpoints.store needs a key in {KEY_VARIABLE}, at least {MIN_KEY_LENGTH} characters, the same on every machine; "
            f"{found}. Versions hold a pickle, which is read from a remote store only if signed with that key. For example: "
            f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"
        )
    return key.encode()


def _counts(number: int, attempt: int, claims: list[Claim]) -> bool:
    """Whether a version that an attempt wrote is part of the run: no later attempt went on from an earlier one."""
    return all(number <= claim.resumed_from for claim in claims if claim.attempt > attempt)


def _hashes(manifest: Mapping[str, Any]) -> set[str]:
    return {segment["sha256"] for entry in manifest["rings"].values() for segment in entry["segments"]}
