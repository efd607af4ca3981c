"""Whether a journal still holds every record that training wrote.

What training produces is numbered 1, 2, 3, …, and a version's manifest says where the journal stood when it was written. A
journal that was restored from an older backup, or cut or edited, does not fit: numbers are missing, or its end is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rltrack.tracking.journal import damaged_line, decode_record


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
        JournalDamaged: If a line of it is no record.
    """
    found: list[str] = []
    next_seq, step, size = 1, 0, 0
    next_seq_there: int | None = None
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            size += len(line)
            try:
                record = decode_record(line)
            except ValueError as error:
                raise damaged_line(path, number, error) from error
            if "seq" in record:
                seq = record["seq"]
                if seq > next_seq:
                    found.append(_gap(next_seq, seq - 1, step, record["step"]))
                elif seq < next_seq:
                    found.append(f"the order: record {seq:,} stands after record {next_seq - 1:,}")
                next_seq, step = max(next_seq, seq + 1), max(step, record["step"])
            if position is not None and size == position.bytes:
                next_seq_there = next_seq
    if position is None:
        return found
    if next_seq < position.next_seq:
        found.append(_gap(next_seq, position.next_seq - 1, step, position.env_steps))
    elif size < position.bytes:
        found.append(
            f"its last {position.bytes - size:,} bytes, with records of attempts, warnings or checkpoints, written before "
            f"{position.version}"
        )
    elif not found and position.bytes and (next_seq_there is None or next_seq_there < position.next_seq):
        found.append(f"something before byte {position.bytes:,}, where it ended when {position.version} was written")
    return found


def _gap(first: int, last: int, after: int, before: int) -> str:
    numbers = f"record {first:,}" if first == last else f"records {first:,} to {last:,}"
    return f"{numbers} (between {after:,} and {before:,} env steps)"
