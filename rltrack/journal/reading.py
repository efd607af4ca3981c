"""Reading a journal: the good records come out, and what is damaged is collected and reported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rltrack import damage
from rltrack.errors import JournalDamaged
from rltrack.journal.lines import Record, decode_line
from rltrack.journal.seal import read_seal

TAIL_BYTES = 1 << 16
_SHOWN_LINES = 5


class JournalReader:
    """Takes a journal's lines in their order; gives the good records, and remembers what is wrong with the rest.

    A line that does not match its checksum, or is no record, is left out. So is one whose number came before: it stands twice,
    or in a wrong place. Where an attempt has recorded that the journal lacks something, what came before is known.

    Args:
        path: The journal, or a file of the same kind.
        at: Position in bytes at which the first line begins.
        resources: Whether it is the file of resource samples, which stand in no journal.
    """

    def __init__(self, path: str | Path, at: int = 0, *, resources: bool = False) -> None:
        self.path = Path(path)
        self._resources = resources
        self._seal = read_seal(self.path)  # before the journal, which may grow meanwhile
        self._is_whole = at == 0
        self._at = at
        self._line = self._last = self._plain = 0
        self._good = 0
        self._unsure = at > 0  # whether lines may have been passed over since the last good one
        self._wrong: list[tuple[str, bool]] = []
        self._more = 0
        self._known: list[tuple[str, bool]] = []
        self._cut = 0

    def take(self, line: bytes) -> Record | None:
        """Return the record of the next line; None where it is left out."""
        self._line += 1
        where = self._place()
        self._at += len(line)
        try:
            number, record = decode_line(line)
            if (record["kind"] == "resources") is not self._resources:
                raise ValueError(f"a record of the kind {record['kind']!r} does not belong here")
        except ValueError as error:
            self._unsure = True
            self._add(f"{where}, which is damaged ({error})")
            return None
        if number is None:
            self._plain += 1
        elif number <= self._last:
            self._add(f"{where}, which stands twice or in a wrong place (it was written as line {number:,})")
            return None
        else:
            lost = number - self._last - 1 - self._plain
            if lost > 0 and not self._unsure:
                self._add(f"{_lines(lost)} before {where}", is_lost=True)
            self._last, self._plain, self._unsure = number, 0, False
        self._good += 1
        if record["kind"] == "attempt" and record.get("missing"):
            self._known += self._wrong
            self._wrong, self._more = [], 0
        return record

    def read(self, lines: Iterable[bytes], *, report: bool = True) -> Iterator[Record]:
        """Yield the good records of lines, which end in a newline; then report what is damaged."""
        for line in lines:
            if not line.endswith(b"\n"):
                self._cut = len(line)
                break
            record = self.take(line)
            if record is not None:
                yield record
        self.finish(report=report)

    def finish(self, *, report: bool = True) -> None:
        """Check whether the end is there, and report what is damaged; comes after the last line."""
        if self._seal.lines:
            if self._cut:
                self._add("the end of its last line")
            elif (lost := self._seal.lines - self._last - self._plain) > 0 and not self._unsure:
                self._add(f"{_lines(lost)} at its end", is_lost=True)
        if report:
            self.report()

    def report(self) -> None:
        """Report what is damaged so far."""
        if self.known:
            damage.report(
                f"{self.path} lacks {'; '.join(self.known)}. The run's record is labelled with that.", known=True
            )
        if self.wrong:
            damage.report(self.words())

    @property
    def position(self) -> int:
        """Position in bytes behind the last line that was taken."""
        return self._at

    @property
    def wrong(self) -> list[str]:
        """What is lacking, as nouns, but for what is known."""
        more = [f"and {self._more:,} more"] if self._more else []
        return [*(text for text, _ in self._wrong), *more]

    @property
    def known(self) -> list[str]:
        """What was lacking when an attempt began that recorded it."""
        return [text for text, _ in self._known]

    @property
    def unreadable(self) -> list[str]:
        """What is there and is left out: of what is known and what is not."""
        return [text for text, is_lost in (*self._known, *self._wrong) if not is_lost]

    def words(self) -> str:
        """Say what is damaged, what is good and what to do."""
        good = f"{self._good:,} records are good and were read" if self._is_whole else "The other records are good"
        text = f"{self.path} is damaged. It lacks {'; '.join(self.wrong)}. {good}; numbers may lack what was left out."
        if self._resources:
            return f"{text} Only samples of memory, CPU and GPU stand there."
        return (
            f"{text} Put the file back from a backup; without one, resume the run: it begins at the newest good version and labels "
            "the record as incomplete."
        )

    def _add(self, text: str, *, is_lost: bool = False) -> None:
        if len(self._wrong) < _SHOWN_LINES:
            self._wrong.append((text, is_lost))
        else:
            self._more += 1

    def _place(self) -> str:
        return f"line {self._line:,}" if self._is_whole else f"the line at byte {self._at:,}"


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"


def read_journal(path: str | Path) -> Iterator[Record]:
    """Yield the good records of a journal in order; what is damaged is left out, and reported at the end.

    Raises:
        JournalDamaged: If the file is gone or cannot be read.
    """
    reader = JournalReader(path)
    try:
        with open(path, "rb") as file:
            yield from reader.read(file)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: OSError) -> JournalDamaged:
    """Say that a journal is gone or cannot be read."""
    what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
    return JournalDamaged(
        f"{path} {what}. The run's versions and configuration are not touched by that. Put the file back from a backup; without "
        "one, resume the run: it begins at its newest good version, and its record is labelled as incomplete."
    )


def read_from(
    path: str | Path, begin: int, end: int, max_bytes: int = 1 << 18, reader: JournalReader | None = None
) -> tuple[list[Record], int]:
    """Return the next whole records of a journal that may still grow.

    Args:
        path: The journal.
        begin: Position in bytes at which a record begins.
        end: Where to stop reading.
        max_bytes: About how much to read at once; a record that is longer is read whole.
        reader: Takes the lines one after another over several calls; what it leaves out is not returned.

    Returns:
        The records, and the position after the last of them. Without a reader, a line that is no record stands as one of the
        kind ``damaged``, with its text.
    """
    with open(path, "rb") as file:
        file.seek(begin)
        data = file.read(min(max_bytes, max(end - begin, 0)))
        if not data.endswith(b"\n") and begin + len(data) < end:
            data += file.readline()[: end - begin - len(data)]
    whole = data[: data.rfind(b"\n") + 1]
    records = []
    for line in whole.split(b"\n")[:-1]:
        if reader is not None:
            record = reader.take(line + b"\n")
            if record is not None:
                records.append(record)
            continue
        try:
            records.append(decode_line(line)[1])
        except ValueError:
            records.append({"kind": "damaged", "time": 0.0, "text": line.decode(errors="replace")[:1000]})
    return records, begin + len(whole)


def read_tail(path: str | Path, max_bytes: int = TAIL_BYTES) -> list[Record]:
    """Return the last records, about `max_bytes` of them, without reading the whole journal; what is damaged is reported.

    Raises:
        JournalDamaged: If the file is gone or cannot be read.
    """
    while True:
        try:
            lines, start = _tail(path, max_bytes)
        except OSError as error:
            raise unreadable(path, error) from error
        reader = JournalReader(path, start)
        records = list(reader.read(lines))
        if records or start == 0:
            return records
        max_bytes *= 8  # one line is longer than that


def _tail(path: str | Path, max_bytes: int) -> tuple[list[bytes], int]:
    """Return the last whole lines (and what is behind them), and where they begin."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        start = max(0, file.tell() - max_bytes)
        file.seek(start)
        if start:
            start += len(file.readline())
        return file.readlines(), start


def last_position(path: Path) -> tuple[Record | None, int]:
    """Return the last record with a number, and the number of the last line, counting those that are damaged."""
    size, window = path.stat().st_size, TAIL_BYTES
    while True:
        lines, _ = _tail(path, window)
        last: Record | None = None
        number: int | None = None
        behind, is_plain = 0, False
        for line in reversed(lines):
            try:
                own, record = decode_line(line)
            except ValueError:
                own, record = None, {}
            is_plain = is_plain or (number is None and own is None and bool(record))
            if number is None:
                number = own
                behind += own is None
            if last is None and "seq" in record:
                last = record
            if last is not None and (number is not None or is_plain):
                return last, _count_lines(path) if number is None else number + behind
        if window >= size:
            return last, (number or 0) + behind
        window *= 8


def numbered_since(path: Path, seq: int) -> tuple[Record | None, list[Record]]:
    """Return the last good record with a number below `seq`, and those from there on, in order."""
    size, window = path.stat().st_size, TAIL_BYTES
    while True:
        before, since = None, []
        for line in _tail(path, window)[0]:
            try:
                record = decode_line(line)[1]
            except ValueError:
                continue
            if record.get("seq", 0) >= seq:
                since.append(record)
            elif "seq" in record:
                before, since = record, []
        if before is not None or window >= size:
            return before, since
        window *= 8


def last_line(path: Path) -> int:
    """Return the number of the last line of a file that may be missing; 0 for an empty one."""
    return last_position(path)[1] if path.is_file() else 0


def _count_lines(path: Path) -> int:
    count = 0
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            count += data.count(b"\n")
    return count
