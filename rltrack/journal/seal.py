"""How a journal was closed: ``journal.seal`` next to it says how many lines it had, and what kept it from being written.

It is made, full of spaces, when the journal is opened for writing. So there is room for the reason even on a disk that is
full by then, and a file that is still blank belongs to a process that runs, or that was killed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from rltrack import damage
from rltrack.sealed import seal_json, unseal_json

_BYTES = 1024
_LONGEST_REASON = 600


@dataclass(frozen=True, slots=True)
class Seal:
    """What is known of a journal that is not open.

    Attributes:
        lines: Number of its last line; 0 if it was not closed.
        failure: Why it could not be written any more; empty if it could.
    """

    lines: int = 0
    failure: str = ""


def seal_file(journal: Path) -> Path:
    """Return the file next to a journal."""
    return journal.with_suffix(".seal")


def read_seal(journal: Path) -> Seal:
    """Return how a journal was closed; one that was not closed, or that an older rltrack wrote, has an empty seal."""
    path = seal_file(journal)
    try:
        text = path.read_bytes()
        if not text.strip():
            return Seal()
        data = unseal_json(text)
        lines, failure = data["lines"], data["failure"]
        if type(lines) is not int or lines < 0 or not isinstance(failure, str):
            raise ValueError("it does not say how the journal was closed")
    except FileNotFoundError:
        return Seal()
    except (OSError, ValueError, KeyError) as error:
        damage.report(
            f"{path} is damaged ({error}): whether the journal's last lines are missing, and why it could not be written, is "
            "not known. Its records are not touched by that; delete the file."
        )
        return Seal()
    return Seal(lines, failure)


def blank_seal(journal: Path) -> int | None:
    """Reserve the room; return a descriptor to write the seal with, or None where there is no room."""
    with contextlib.suppress(OSError):
        descriptor = os.open(seal_file(journal), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, _BYTES)
            os.pwrite(descriptor, b" " * _BYTES, 0)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def write_seal(descriptor: int, seal: Seal) -> None:
    """Write how the journal was closed, into the room that was reserved."""
    text = seal_json({"lines": seal.lines, "failure": seal.failure[:_LONGEST_REASON]}).encode()
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, text.ljust(_BYTES)[: max(_BYTES, len(text))], 0)
