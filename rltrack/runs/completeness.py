"""Whether a journal still holds every record that training wrote.

What training produces is numbered 1, 2, 3, …, and a version's manifest says where the journal stood when it was written. A
journal that was restored from an older backup, or cut or edited, does not fit: numbers are missing, or its end is, or a line
is damaged.
"""

from __future__ import annotations

from dataclasses import dataclass

from rltrack.journal import JournalReader, Record


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """Where the journal stood when a version was written.

    Attributes:
        version: The version's name.
        env_steps: Its env steps.
        next_seq: The number that the next record was to have.
        bytes: Size of the journal.
    """

    version: str
    env_steps: int
    next_seq: int
    bytes: int


class Numbering:
    """Follows the numbers of a journal's records.

    Args:
        position: Where the journal must reach at least; omitted: only its numbers are looked at.
    """

    def __init__(self, position: JournalPosition | None = None) -> None:
        self._position = position
        self._found: list[str] = []
        self._next_seq, self._step = 1, 0
        self._next_seq_there: int | None = None

    def observe(self, record: Record, end: int) -> None:
        """Take the next good record, whose line ends at byte `end`."""
        if "seq" in record:
            seq = record["seq"]
            if seq > self._next_seq:
                self._found.append(_gap(self._next_seq, seq - 1, self._step, record["step"]))
            elif seq < self._next_seq:
                self._found.append(f"the order: record {seq:,} stands after record {self._next_seq - 1:,}")
            self._next_seq, self._step = max(self._next_seq, seq + 1), max(self._step, record["step"])
        if self._position is not None and end == self._position.bytes:
            self._next_seq_there = self._next_seq

    def missing(self, reader: JournalReader) -> list[str]:
        """Return what the journal lacks, as text, once `reader` has read all of it; nothing for one that is whole."""
        found, position = list(self._found), self._position
        if position is not None:
            if self._next_seq < position.next_seq:
                found.append(_gap(self._next_seq, position.next_seq - 1, self._step, position.env_steps))
            elif reader.position < position.bytes and not reader.wrong:
                found.append(
                    f"its last {position.bytes - reader.position:,} bytes, with records of attempts, warnings or checkpoints, "
                    f"written before {position.version}"
                )
            elif (
                not found
                and not reader.wrong
                and not reader.known
                and position.bytes
                and (self._next_seq_there is None or self._next_seq_there < position.next_seq)
            ):
                found.append(
                    f"something before byte {position.bytes:,}, where it ended when {position.version} was written"
                )
        if found:  # the lines that were lost had these numbers
            return [*reader.unreadable, *found]
        return [*reader.known, *reader.wrong]


def _gap(first: int, last: int, after: int, before: int) -> str:
    numbers = f"record {first:,}" if first == last else f"records {first:,} to {last:,}"
    return f"{numbers} (between {after:,} and {before:,} env steps)"
