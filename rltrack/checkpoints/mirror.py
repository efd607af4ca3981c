"""The thread that keeps a run's copy in a remote store up to date during training."""

from __future__ import annotations

import threading
from pathlib import Path

import orjson

from rltrack.backoff import Backoff
from rltrack.checkpoints.remote import RemoteRun
from rltrack.checkpoints.store import CheckpointStore
from rltrack.checkpoints.unsigned import Claim
from rltrack.checkpoints.version import Version
from rltrack.errors import CheckpointCorrupt, RunTakenOver
from rltrack.files import replace_text

STATE_FILE = "mirror.json"
_FIRST_WAIT, _LONGEST_WAIT = 0.4, 60.0
_CLOSING_WAIT = 0.2
_LAST_WRITE = 5.0
"""Seconds that a write to the store may still take when it is given up."""


class Mirror:
    """Copies versions and journal to a remote store, asynchronously; an outage delays it and stops nothing.

    Args:
        remote: The copy.
        folder: The run's folder.
        claim: This attempt, already made in the store.
    """

    def __init__(self, remote: RemoteRun, folder: Path, claim: Claim) -> None:
        self._remote, self._folder, self._claim = remote, folder, claim
        self._store = CheckpointStore(folder / "checkpoints")
        self._done = {(number, attempt) for number, attempt in _numbers(remote)}
        self._position = claim.journal_bytes
        self._config_is_there = False
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._finished = threading.Event()
        self._journal_end: int | None = None
        self._problems: list[str] = []
        self._taken_over: RunTakenOver | None = None
        write_state(folder, claim.attempt, self._position)
        self._thread = threading.Thread(target=self._run, name="rltrack-mirror", daemon=True)
        self._thread.start()
        self.wake()  # what the attempt before did not get there

    def wake(self) -> None:
        """There is a new version."""
        self._wanted.set()

    def take_problems(self) -> list[str]:
        """Return what went wrong since the last call.

        Raises:
            RunTakenOver: If another machine resumed the run.
        """
        if self._taken_over is not None:
            raise self._taken_over
        problems, self._problems = self._problems, []
        return problems

    def close(self, timeout: float) -> bool:
        """Copy everything up to the end of the journal.

        Args:
            timeout: Seconds to wait for it.

        Returns:
            Whether the store has it all.
        """
        self._journal_end = (self._folder / "journal.jsonl").stat().st_size
        self._closing.set()
        self._wanted.set()
        is_complete = self._finished.wait(timeout) and self._taken_over is None
        self._finished.set()  # an outage goes on: the next process that opens the run copies, and this one no more
        self._thread.join(_LAST_WRITE)
        return is_complete

    def _run(self) -> None:
        backoff = Backoff(_FIRST_WAIT, _LONGEST_WAIT)
        while not self._finished.is_set():
            if backoff.failures == 0:
                self._wanted.wait()
            self._wanted.clear()
            closing = self._closing.is_set()
            try:
                self._copy(closing)
            except RunTakenOver as error:
                self._taken_over = error
                self._finished.set()
                return
            except Exception as error:  # whatever the store's client raises: an outage, a refusal
                wait = backoff.failed(wait=_CLOSING_WAIT if closing else None)
                if backoff.failures == 1:
                    self._problems.append(
                        f"The remote store {self._remote.url} cannot be written: {error}. Trying again."
                    )
                (self._finished if closing else self._closing).wait(wait)
                continue
            backoff.succeeded()
            if closing:
                self._finished.set()

    def _copy(self, closing: bool) -> None:
        self._remote.check_is_newest(self._claim.attempt)
        versions = self._store.versions()
        if not self._config_is_there:
            self._remote.upload_config(self._folder / "config.yaml")
            self._config_is_there = True
        self._copy_journal(max((version.journal["bytes"] for version in versions), default=0))
        for version in sorted(versions, key=lambda version: (not version.is_resumable, -version.number)):
            if self._finished.is_set():
                return
            if _key(version) not in self._done and self._upload(version):
                self._done.add(_key(version))
        here = {_key(version) for version in versions}
        if self._done - here and any(version.is_resumable for version in versions):
            self._remote.check_is_newest(self._claim.attempt)
            self._remote.delete_except(here)
            self._done &= here
        if closing and self._journal_end is not None:  # the record of the end comes after what it ends with
            self._copy_journal(self._journal_end)
        write_state(self._folder, self._claim.attempt, self._position)

    def _upload(self, version: Version) -> bool:
        """Copy a version; False if it was superseded and deleted here meanwhile: then a newer one follows."""
        try:
            self._remote.upload_version(version, self._claim.attempt)
        except FileNotFoundError:
            if version.path.exists():
                raise
            return False
        return True

    def _copy_journal(self, last: int) -> None:
        if last > self._position:
            self._remote.upload_journal(self._folder / "journal.jsonl", self._claim.attempt, self._position, last)
            self._position = last


def _key(version: Version) -> tuple[int, int]:
    return version.number, version.attempt


def _numbers(remote: RemoteRun) -> list[tuple[int, int]]:
    return [(int(manifest["number"]), int(manifest["attempt"])) for _, manifest in remote.versions()]


def write_state(folder: Path, attempt: int, journal_bytes: int) -> None:
    """Remember which attempt this folder belongs to, and how much of its journal the store has."""
    replace_text(folder / STATE_FILE, orjson.dumps({"attempt": attempt, "journal_bytes": journal_bytes}).decode())


def has_mirror(folder: Path) -> bool:
    """Whether a run was copied to a store from here."""
    return (folder / STATE_FILE).exists()


def attempt_of(folder: Path) -> int:
    """Return the number of the attempt that this folder belongs to; 0 where nothing was mirrored from here.

    Raises:
        CheckpointCorrupt: If the file that says so cannot be read.
    """
    return _state(folder)["attempt"]


def mirrored_bytes(folder: Path) -> int:
    """Return how much of its journal the store has, in bytes; 0 where nothing was mirrored from here.

    Raises:
        CheckpointCorrupt: If the file that says so cannot be read.
    """
    return _state(folder)["journal_bytes"]


def _state(folder: Path) -> dict[str, int]:
    path = folder / STATE_FILE
    try:
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {"attempt": 0, "journal_bytes": 0}
    except (OSError, ValueError) as error:
        found = error
    numbers = [found.get(key) for key in ("attempt", "journal_bytes")] if isinstance(found, dict) else []
    good = [number for number in numbers if type(number) is int and number >= 0]
    if len(good) < 2:
        raise CheckpointCorrupt(
            f"{path} does not say which attempt this folder belongs to: {str(found)[:80]}. Delete it: the run is then fetched "
            "from its store, and what is here is kept aside."
        )
    return {"attempt": good[0], "journal_bytes": good[1]}
