"""A run's copy in a remote store: any fsspec URL, such as ``s3://bucket/prefix`` or ``file:///mnt/runs``.

::

    <url>/<run>/config.yaml, config.yaml.hmac
                attempts/000002.json                    made exclusively: one trainer per run, over all machines
                journal/000002-000000012345.jsonl       pieces of the journal, by attempt and first byte
                segments/<sha256>.safetensors           rows of replay buffers
                checkpoints/v000012-000002/             files first, then the manifest's signature, the manifest last

An attempt says from which version and from which byte of the journal it resumed. What an earlier attempt wrote beyond that
does not count, so that a trainer that was thought dead can commit nothing. A signature (HMAC-SHA256 with a key from the
environment) covers the manifest, and with it every file: nothing from a remote store is unpickled without it. Another covers the
configuration, which names what is imported, together with the run's name. The rest is read as `rltrack.checkpoints.unsigned`
says.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from rltrack.checkpoints import segments
from rltrack.checkpoints.unsigned import Claim, check_journal, claim_of, unsigned_configuration
from rltrack.checkpoints.version import MANIFEST, Version, unseal
from rltrack.config import check_run_name
from rltrack.errors import CheckpointCorrupt, ConfigurationError, MissingExtra, RltrackError, RunTakenOver
from rltrack.files import create_file, inside, write_bytes

KEY_VARIABLE = "RLTRACK_SIGNING_KEY"
MIN_KEY_LENGTH = 16
_ATTEMPT = re.compile(r"(\d{6})\.json")
_PIECE = re.compile(r"(\d{6})-(\d{12})\.jsonl")
_VERSION = re.compile(r"v(\d{6,})-(\d{6})")
_CONFIG = "config.yaml"


class RemoteRun:
    """One run in a remote store.

    Args:
        url: Of the store.
        name: The run's name.
        key: Signs manifests and the configuration.

    Raises:
        ConfigurationError: If the name cannot be a run's.
        MissingExtra: If nothing installed can read such a URL.
    """

    def __init__(self, url: str, name: str, key: bytes) -> None:
        self._store, self._name, self._key = url, check_run_name(name), key
        self.url = f"{url.rstrip('/')}/{name}"
        import fsspec  # here, since it takes a while and most trainings have no remote store
        from fsspec.implementations.local import LocalFileSystem

        try:
            self._fs, self._path = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise MissingExtra(
                f"checkpoints.store '{url}': {error}. For s3:// install rltrack[s3]; local folders are file:///path."
            ) from None
        self._is_local = isinstance(self._fs, LocalFileSystem)

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
        """Return the attempts so far, oldest first.

        Raises:
            CheckpointCorrupt: If a file does not describe one.
        """
        return [self._claim(int(name[:6])) for name in sorted(self._names("attempts")) if _ATTEMPT.fullmatch(name)]

    def _claim(self, attempt: int) -> Claim:
        name = f"attempts/{attempt:06d}.json"
        return claim_of(self._read(name), attempt, f"{self.url}/{name}")

    def claim(self, claim: Claim) -> None:
        """Begin an attempt: from now on, earlier ones commit nothing.

        Raises:
            RunTakenOver: If another machine began the same attempt first.
        """
        data = orjson.dumps({name: getattr(claim, name) for name in Claim.__slots__})
        path = f"{self._path}/attempts/{claim.attempt:06d}.json"
        try:
            if self._is_local:
                self._fs.makedirs(os.path.dirname(path), exist_ok=True)
                create_file(Path(path), data)
            else:
                self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            raise RunTakenOver(
                f"Another machine began attempt {claim.attempt} of {self.url} at the same moment. Let it train, or try again."
            ) from None

    def check_is_newest(self, attempt: int) -> None:
        """Find out whether another machine resumed the run meanwhile.

        Raises:
            RunTakenOver: If so.
        """
        newest = max((int(name[:6]) for name in self._names("attempts") if _ATTEMPT.fullmatch(name)), default=0)
        if newest > attempt:
            host = self._claim(newest).host
            raise RunTakenOver(
                f"Another trainer resumed {self.url}: attempt {newest} on {host}, this is attempt {attempt}. This one stops; "
                "what it wrote since does not count."
            )

    # ---- from here to there ----

    def upload_config(self, config: Path) -> None:
        """Copy the configuration with its signature; the one before stays valid, should this be cut short in between."""
        data = config.read_bytes()
        before = (self._read_if_there(f"{_CONFIG}.hmac") or b"").split()[:1]
        self._write(f"{_CONFIG}.hmac", b"\n".join([self._config_signature(data), *before]))
        self._write(_CONFIG, data)

    def upload_journal(self, journal: Path, attempt: int, first: int, last: int) -> None:
        """Copy the bytes ``first <= b < last`` of the journal."""
        if last > first:
            with open(journal, "rb") as file:
                file.seek(first)
                self._write(f"journal/{attempt:06d}-{first:012d}.jsonl", file.read(last - first))

    def upload_version(self, version: Version, attempt: int) -> None:
        """Copy a version: what it refers to first, the manifest last, and only if no other machine took over.

        Raises:
            RunTakenOver: If another machine resumed the run.
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
                used |= {one["sha256"] for entry in manifest["rings"].values() for one in entry["segments"]}
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

    def download(self, folder: Path, notify: Callable[[str], None]) -> int:
        """Copy the run to an empty folder: configuration, journal, versions.

        Returns:
            The size of the journal, in bytes.

        Raises:
            CheckpointCorrupt: If a signature does not hold, or something is not as rltrack writes it.
        """
        versions, claims = self.versions(), self.claims()
        config = self._configuration(versions[-1][1] if versions else None, notify)
        journal = self._journal()
        if claims:
            check_journal(journal, claims[-1].run_id, f"{self.url}/journal")
        if config is not None:
            write_bytes(folder / _CONFIG, config)
        checkpoints = folder / "checkpoints"
        (checkpoints / segments.FOLDER).mkdir(parents=True)
        for name, manifest in versions:
            own = checkpoints / name.partition("-")[0]
            notify(f"fetching {own.name} ({int(manifest['env_steps']):,} env steps) from {self.url}")
            try:
                self._download_version(name, manifest, own)
            except FileNotFoundError:  # superseded there meanwhile, by a trainer that does not know yet
                shutil.rmtree(own)
        if journal:
            write_bytes(folder / "journal.jsonl", journal)  # last: with it, there is a run
        return len(journal)

    def _configuration(self, newest: Mapping[str, Any] | None, notify: Callable[[str], None]) -> bytes | None:
        """Return the configuration; None where the attempt ended before it was copied."""
        data, signatures = self._read_if_there(_CONFIG), self._read_if_there(f"{_CONFIG}.hmac")
        where = f"{self.url}/{_CONFIG}"
        if data is None:
            if newest is None:
                return None
            raise CheckpointCorrupt(f"{where} is missing, though there are versions: the store was changed.")
        if signatures is None:
            config = unsigned_configuration(data, newest, name=self._name, store=self._store, source=where)
            notify(f"{where} has no signature: settings that do not change the result are at their defaults")
            return config
        ours = self._config_signature(data)
        if not any(hmac.compare_digest(signature, ours) for signature in signatures.split()):
            raise CheckpointCorrupt(
                f"The signature of {where} does not hold: it was written with another {KEY_VARIABLE}, for another run, or changed "
                "since. It names what is imported and run; it is not used. Set the key with which it was written."
            )
        return data

    def _download_version(self, name: str, manifest: Mapping[str, Any], own: Path) -> None:
        own.mkdir()
        try:
            pieces = [piece for entry in manifest["rings"].values() for piece in entry["segments"]]
            rows = {inside(own.parent / segments.FOLDER, piece["file"]): str(piece["sha256"]) for piece in pieces}
            files = {inside(own, file): file for file in manifest["files"]}
        except (ConfigurationError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointCorrupt(f"{self.url}/checkpoints/{name}/{MANIFEST}: {error}") from None
        for target, sha256 in rows.items():
            if not target.exists():
                write_bytes(target, self._read(f"segments/{sha256}.safetensors"))
        for target, file in files.items():
            write_bytes(target, self._read(f"checkpoints/{name}/{file}"))
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
            manifest = unseal(data)
            named = f"v{int(manifest['number']):06d}-{int(manifest['attempt']):06d}"
        except (RltrackError, ValueError, KeyError, TypeError) as error:
            raise CheckpointCorrupt(f"{self.url}/checkpoints/{name}/{MANIFEST}: {error}") from None
        if named != name:
            raise CheckpointCorrupt(
                f"{self.url}/checkpoints/{name} holds another version, {named}: it was moved there."
            )
        return manifest

    def _signature(self, data: bytes) -> bytes:
        return hmac.new(self._key, data, hashlib.sha256).hexdigest().encode()

    def _config_signature(self, data: bytes) -> bytes:
        """Bound to the run's name, so that no other run's configuration can be put in its place."""
        return self._signature(b"configuration of %s\n%s" % (self._name.encode(), data))

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

    def _read_if_there(self, name: str) -> bytes | None:
        try:
            return self._read(name)
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._path}/{name}"
        if self._is_local:
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
    """Whether a version that an attempt wrote is part of the run: no later attempt resumed from an earlier one."""
    return all(number <= claim.resumed_from for claim in claims if claim.attempt > attempt)
