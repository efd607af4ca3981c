"""What a reader found damaged and left out. It is reported once, never silently.

A reader calls `report`. A command collects what is reported while it runs and prints it at its end; elsewhere it is a
warning in the log.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

_logger = logging.getLogger("rltrack")


@dataclass
class Collected:
    """What was reported, each text once.

    Attributes:
        new: Damage not yet noted.
        known: Damage that the record itself is labelled with already.
    """

    new: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    def accept(self) -> None:
        """Take note of everything so far: it is still reported, but no longer an error."""
        self.known += self.new
        self.new = []


_collected: ContextVar[Collected | None] = ContextVar("rltrack_damage", default=None)
_logged: set[str] = set()


def report(text: str, *, known: bool = False) -> None:
    """Report what is damaged, what is intact and what to do.

    Args:
        text: In words.
        known: Whether the run's record is labelled with it already.
    """
    found = _collected.get()
    if found is not None:
        if text not in found.new and text not in found.known:
            (found.known if known else found.new).append(text)
    elif not known and text not in _logged:
        _logged.add(text)
        _logger.warning(text)


@contextlib.contextmanager
def collected() -> Iterator[Collected]:
    """Collect what is reported inside, instead of logging it."""
    found = Collected()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def accept() -> None:
    """Take note of what was reported so far, where a collector is active: see `Collected.accept`."""
    found = _collected.get()
    if found is not None:
        found.accept()
