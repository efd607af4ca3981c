"""The writer of a journal: appends whole lines, one process at a time, and repairs an end that a crash cut."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rltrack.errors import JournalFailed
from rltrack.journal.fields import check_values
from rltrack.journal.lines import Record, encode_record, numbered_line
from rltrack.journal.reading import TAIL_BYTES, last_position, numbered_since
from rltrack.journal.repetition import Repetition
from rltrack.journal.seal import Seal, blank_seal, read_seal, write_seal

_LOOK_SECONDS = 1.0


class Journal:
    """Appends records to a file; one ``os.write`` each. A signal's handler may write, also while another record is written.

    Opening repairs the tail: a last line that a crash cut short is removed. Writing fails once the file is gone: the run's
    folder was removed or moved away.

    Args:
        path: The file; made if missing.
        clock: Gives the time of a record, in Unix seconds.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        self._listeners: list[Callable[[Record], None]] = []
        self._is_writing = False
        self._waiting: list[Record] = []
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = _repair(self._descriptor)
        except OSError as error:
            raise JournalFailed(
                f"The journal {self.path} cannot be opened: {error}. Make it writable, or put it back from a backup."
            ) from error
        self._inode = os.fstat(self._descriptor).st_ino
        self._looked = 0.0
        self._failure = ""
        last, self._lines = last_position(self.path)
        self._lines = max(self._lines, read_seal(self.path).lines)  # numbers that were lost are not given out again
        self._seal = blank_seal(self.path)
        self._next_seq = last["seq"] + 1 if last else 1
        self.high_water_step = last["step"] if last else 0
        self._drop_until_step: int | None = None
        self._repetition = Repetition([])

    def listen(self, listener: Callable[[Record], None]) -> None:
        """Call `listener` with each record that is written from now on."""
        self._listeners.append(listener)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append a numbered record: something that training produced at `step` env steps.

        After a resume, what is in the journal already is not written again.

        Raises:
            TypeError: If a metric is no number: such a record could not be read back.
        """
        if kind == "metrics":
            check_values(fields["values"])
        step = int(step)
        if self._drop_until_step is not None:
            if step <= self._drop_until_step:
                return
            self._drop_until_step = None
        if self._repetition.has(kind, step):
            return
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._append({"seq": seq, "time": self._clock(), "kind": kind, "step": step, **fields})

    def note(self, kind: str, **fields: Any) -> None:
        """Append a record that is outside the numbering: something that happened to a process."""
        self._append({"time": self._clock(), "kind": kind, **fields})

    def resume_from(self, next_seq: int, env_steps: int, *, exact: bool) -> None:
        """Go on from a checkpoint that was taken when `next_seq` was next.

        Args:
            next_seq: `next_seq` at the checkpoint.
            env_steps: Env steps at the checkpoint.
            exact: Whether the stretch since then will repeat itself. If so, those of its records that are here are not written
                twice. If not, records are dropped up to the env steps that the journal already reached, so that two branches
                never interleave.
        """
        before, since = numbered_since(self.path, next_seq)
        if exact:
            self._repetition = Repetition(since)
            reached = (
                before["step"] if before else 0
            )  # behind the checkpoint, if another branch got further than this one
        else:
            reached = max([self.high_water_step, *(record["step"] for record in since)])
        self._drop_until_step = reached if reached > env_steps else None
        self._next_seq = max(self._next_seq, next_seq)  # numbers that the journal lost are not given out again

    @property
    def next_seq(self) -> int:
        """Number of the next record that training produces, whether it is here already or not."""
        return self._repetition.next_seq or self._next_seq

    @property
    def position(self) -> dict[str, int]:
        """The next number and the size in bytes, for a checkpoint's manifest."""
        return {"next_seq": self.next_seq, "bytes": self._size}

    def sync(self) -> None:
        """Make everything written so far survive a power cut.

        Raises:
            JournalFailed: If that cannot be, or the file is gone.
        """
        self._look()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._descriptor >= 0

    def close(self) -> None:
        """Close the file; harmless if closed before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._seal is not None:
            write_seal(self._seal, Seal(self._lines, self._failure))
            os.close(self._seal)
            self._seal = None

    def _append(self, record: Record) -> None:
        self._waiting.append(record)
        while self._waiting and not self._is_writing:  # else a signal's handler interrupted a record, which comes first
            self._is_writing = True
            try:
                if self._waiting:  # else a handler has just written it
                    self._append_one(self._waiting.pop(0))
            finally:
                self._is_writing = False

    def _append_one(self, record: Record) -> None:
        line = numbered_line(encode_record(record), self._lines + 1)
        if record["time"] - self._looked >= _LOOK_SECONDS or os.fstat(self._descriptor).st_nlink == 0:
            self._looked = record["time"]
            self._look()
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written; is the disk full?")
        except OSError as error:
            raise self._failed(error) from error
        self._size += len(line)
        self._lines += 1
        for listener in self._listeners:
            listener(record)

    def _look(self) -> None:
        """Notice that the file is no longer where readers look for it: what was written then would be lost."""
        try:
            if os.stat(self.path).st_ino == self._inode:
                return
            what = "was replaced by another file"
        except OSError as error:
            what = f"is gone ({error.strerror})"
        self._failure = f"{self.path} {what} while it was written: was the run's folder removed or moved?"
        raise JournalFailed(
            f"The journal {self._failure} What was trained since the last version there is lost. If the folder was moved, put "
            "it back and resume the run."
        )

    def _failed(self, error: OSError) -> JournalFailed:
        self._failure = f"The journal cannot be written: {error}"
        return JournalFailed(f"The journal {self.path} cannot be written: {error}.")


def _repair(descriptor: int) -> int:
    """Cut off a last line that has no newline; return the size."""
    size = os.fstat(descriptor).st_size
    position, keep = size, 0
    while position > 0:
        start = max(0, position - TAIL_BYTES)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        position = start
    if keep < size:
        os.ftruncate(descriptor, keep)
    return keep
