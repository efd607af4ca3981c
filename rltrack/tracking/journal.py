"""The run's append-only record of everything that happened: one JSON object a line.

Every record has ``kind`` and ``time`` (Unix seconds, fixed when logged). What training produces is *numbered*: it carries
``seq`` (1, 2, 3, …) and ``step`` (env steps); what belongs to a process (attempts, signals, errors, the end) is not.

======================  =================================================================================
kind                    fields
======================  =================================================================================
``metrics``             ``step``, ``values`` {key: number}
``episodes``            ``step``, ``returns``, ``lengths``, ``steps``: the episodes that ended in an iteration
``evaluation``          ``step``, ``returns``, ``lengths``, ``mean``, ``std``, ``median``, ``iqm``, ``interval``, …
``decision``            ``step``, ``decision``, ``reason``, ``numbers``
``configuration``       ``run_id``, ``identity``, ``agent``: first line of the journal (not numbered)
``checkpoint``          ``step``, ``version``, ``score``, ``resumable`` (not numbered: some are due by the clock)
``attempt``             ``number``, ``resumed_from``, ``exact``, ``environments`` (tier), ``host``, ``pid``, ``versions``,
                        ``missing`` [text]: records that the journal had lost when the attempt began (not numbered)
``warning``             ``message`` (not numbered)
``signal``              ``name`` (not numbered)
``error``               ``error``, ``message`` (not numbered)
``end``                 ``state``, ``reason``, ``env_steps``, ``episodes``, ``seconds`` (not numbered)
======================  =================================================================================

JSON has no NaN and no infinities; they are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` and read
back as numbers in the numeric fields (`NUMERIC_FIELDS`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from rltrack.errors import JournalDamaged, JournalFailed
from rltrack.tracking.fields import NUMERIC_FIELDS, check_record, check_values, numeric

Record = dict[str, Any]

KINDS = (
    "configuration",
    "attempt",
    "metrics",
    "episodes",
    "evaluation",
    "decision",
    "checkpoint",
    "warning",
    "signal",
    "error",
    "end",
)
_TAIL_BYTES = 1 << 16
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


def encode_record(record: Record) -> bytes:
    """Return a record as one line, newline included."""
    line = orjson.dumps(record, option=_OPTIONS)
    # orjson writes NaN and infinities as null; looking for it is far cheaper than looking at every number
    return orjson.dumps(_explicit(record), option=_OPTIONS) if b"null" in line else line


def decode_record(line: bytes) -> Record:
    """Return the record of a line.

    Raises:
        ValueError: If the line is not a JSON object, or a field of it cannot be what training wrote.
    """
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError("a journal line is a JSON object")
    for field in NUMERIC_FIELDS:
        if field in record:
            record[field] = numeric(record[field])
    check_record(record)
    return record


def _explicit(value: Any) -> Any:
    """Replace what JSON cannot hold."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _explicit(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_explicit(item) for item in value]
    return value


class Journal:
    """Appends records to a file; one ``os.write`` each.

    Opening repairs the tail: a last line that a crash cut short is removed.

    Args:
        path: The file; made if missing.
        clock: Gives the time of a record, in Unix seconds.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        self._listeners: list[Callable[[Record], None]] = []
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = _repair(self._descriptor)
        except OSError as error:
            raise JournalFailed(f"The journal {self.path} cannot be opened: {error}.") from error
        last = _last_numbered(self.path)
        self.next_seq = last["seq"] + 1 if last else 1
        self._high_water_seq = self.next_seq - 1
        self.high_water_step = last["step"] if last else 0
        self._drop_until_step: int | None = None

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
        seq = self.next_seq
        self.next_seq += 1
        record = {"seq": seq, "time": self._clock(), "kind": kind, "step": int(step), **fields}
        if self._drop_until_step is not None:
            if step <= self._drop_until_step:
                self.next_seq = seq
                return
            self._drop_until_step = None
        elif seq <= self._high_water_seq:
            return
        self._append(record)

    def note(self, kind: str, **fields: Any) -> None:
        """Append a record that is outside the numbering: something that happened to a process."""
        self._append({"time": self._clock(), "kind": kind, **fields})

    def resume_from(self, next_seq: int, *, exact: bool) -> None:
        """Go on from a checkpoint that was taken when `next_seq` was next.

        Args:
            next_seq: `next_seq` at the checkpoint.
            exact: Whether the stretch since then will repeat itself. If so, its records have the same numbers and are not
                written twice. If not, records are dropped up to the env steps that the journal already reached, so that
                two branches never interleave.
        """
        if exact:
            self.next_seq = next_seq
        else:
            self._drop_until_step = self.high_water_step
            self.next_seq = max(self.next_seq, next_seq)  # numbers that the journal lost are not given out again

    @property
    def position(self) -> dict[str, int]:
        """The next number and the size in bytes, for a checkpoint's manifest."""
        return {"next_seq": self.next_seq, "bytes": self._size}

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalFailed(f"The journal {self.path} cannot be written: {error}.") from error

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._descriptor >= 0

    def close(self) -> None:
        """Close the file; harmless if closed before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, record: Record) -> None:
        line = encode_record(record)
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written; is the disk full?")
        except OSError as error:
            raise JournalFailed(f"The journal {self.path} cannot be written: {error}.") from error
        self._size += len(line)
        for listener in self._listeners:
            listener(record)


def read_journal(path: str | Path) -> Iterator[Record]:
    """Yield the records of a journal in order; a torn last line is left out.

    Raises:
        JournalDamaged: If a line in the middle is not a record; it is named.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_record(line)
            except ValueError as error:
                raise damaged_line(path, number, error) from error


def damaged_line(path: str | Path, number: int, error: Exception) -> JournalDamaged:
    """Say which line of a journal is no record."""
    return JournalDamaged(
        f"{path}, line {number}: {error}. Put the journal back from a backup; or delete that line: whatever reads the run "
        "then goes on without it, and says that its record is missing."
    )


def read_from(path: str | Path, begin: int, end: int, max_bytes: int = 1 << 18) -> tuple[list[Record], int]:
    """Return the next whole records of a journal that may still grow.

    Args:
        path: The journal.
        begin: Position in bytes at which a record begins.
        end: Where to stop reading.
        max_bytes: About how much to read at once; a record that is longer is read whole.

    Returns:
        The records, and the position after the last of them. A line that is no record stands as one of the kind
        ``damaged``, with its text.
    """
    with open(path, "rb") as file:
        file.seek(begin)
        data = file.read(min(max_bytes, max(end - begin, 0)))
        if not data.endswith(b"\n") and begin + len(data) < end:
            data += file.readline()[: end - begin - len(data)]
    whole = data[: data.rfind(b"\n") + 1]
    records = []
    for line in whole.split(b"\n")[:-1]:
        try:
            records.append(decode_record(line))
        except ValueError:
            records.append({"kind": "damaged", "time": 0.0, "text": line.decode(errors="replace")[:1000]})
    return records, begin + len(whole)


def read_tail(path: str | Path, max_bytes: int = _TAIL_BYTES) -> list[Record]:
    """Return the last records, about `max_bytes` of them, without reading the whole journal; what is no record is left out."""
    while True:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            start = max(0, file.tell() - max_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
        records = []
        for line in lines[1:] if start else lines:
            try:
                records.append(decode_record(line))
            except ValueError:
                continue
        if records or start == 0:
            return records
        max_bytes *= 8  # one line is longer than that


def _repair(descriptor: int) -> int:
    """Cut off a last line that has no newline; return the size."""
    size = os.fstat(descriptor).st_size
    position, keep = size, 0
    while position > 0:
        start = max(0, position - _TAIL_BYTES)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        position = start
    if keep < size:
        os.ftruncate(descriptor, keep)
    return keep


def _last_numbered(path: Path) -> Record | None:
    size = path.stat().st_size
    window = _TAIL_BYTES
    while True:
        for record in reversed(read_tail(path, window)):
            if "seq" in record:
                return record
        if window >= size:
            return None
        window *= 8
