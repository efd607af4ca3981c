"""Whether a journal still holds every record that training wrote.

What training produces is numbered 1, 2, 3, …, and a version's manifest says where the journal stood when it was written. A
journal that was restored from an older backup, or cut or edited, does not fit: numbers are missing, or its end is, or a line
is damaged.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from rltrack.tracking.journal_reading import JournalReader, unreadable


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


def missing_records(path: str | Path, position: JournalPosition | None = None) -> list[str]:
    """Return what a journal lacks, in words; nothing for one that is whole.

    Args:
        path: The journal.
        position: Where it must reach at least; omitted: only its numbers are looked at.

    Raises:
        JournalDamaged: If the file is gone or cannot be read.
    """
    found: list[str] = []
    next_seq, step, size = 1, 0, 0
    next_seq_there: int | None = None
    reader = JournalReader(path)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise unreadable(path, error) from error
        for line in file:
            if not line.endswith(b"\n"):
                break
            size += len(line)
            record = reader.take(line)
            if record is not None and "seq" in record:
                seq = record["seq"]
                if seq > next_seq:
                    found.append(_gap(next_seq, seq - 1, step, record["step"]))
                elif seq < next_seq:
                    found.append(f"the order: record {seq:,} stands after record {next_seq - 1:,}")
                next_seq, step = max(next_seq, seq + 1), max(step, record["step"])
            if position is not None and size == position.bytes:
                next_seq_there = next_seq
    reader.finish(tell=False)
    if position is not None:
        if next_seq < position.next_seq:
            found.append(_gap(next_seq, position.next_seq - 1, step, position.env_steps))
        elif size < position.bytes and not reader.wrong:
            found.append(
                f"its last {position.bytes - size:,} bytes, with records of attempts, warnings or checkpoints, written before "
                f"{position.version}"
            )
        elif (
            not found
            and not reader.wrong
            and not reader.known
            and position.bytes
            and (next_seq_there is None or next_seq_there < position.next_seq)
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
