"""Texts and values that others wrote, such as errors of environments, on their way into a message or to a terminal."""

from __future__ import annotations

import io
import sys
import unicodedata
from typing import Any

_KEPT = frozenset("\n\t")
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that make a terminal show a text in another order than it has."""


def printable(text: str) -> str:
    r"""Return a text in which nothing steers a terminal: control characters become visible, such as ``\x1b``.

    Line ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def is_terminal(stream: Any) -> bool:
    """Return whether an output, such as ``sys.stderr``, is a terminal; it may be None, or an object of its own kind."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # ValueError: it is closed
        return False


def print_in_any_encoding() -> None:
    """Have standard output replace what its encoding lacks, as standard error does; otherwise the print raises an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def shortened(value: object, longest: int) -> str:
    """Return a value's representation in at most so many characters; one that is cut ends with three dots."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _visible(character: str) -> str:
    if character in _KEPT:
        return character
    if character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character
