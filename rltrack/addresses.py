"""Paths as addresses, and back: ``sqlite:///…`` as SQLAlchemy reads it, ``file:///…`` as MLflow reads it, names of one place.

The two are quoted differently. SQLAlchemy 2.0 takes what stands between ``sqlite:///`` and the first ``?`` as the path, letter by
letter; in a ``file:`` address every special character is percent-encoded. No other module puts a path into an address, or takes
one out.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rltrack.errors import ConfigurationError

__all__ = [
    "check_addressable", "file_path", "file_uri", "moved", "read_only_uri", "same_address", "same_place", "sqlite_path",
    "sqlite_uri", "without_account",
]  # fmt: skip

_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///([^?]*)(?:\?.*)?", re.DOTALL)
_IN_MEMORY = (":memory:", "mode=memory")
"""SQLAlchemy and Prefect take a database for one in memory where its address has such a text in it."""


def check_addressable(path: Path) -> None:
    """Find out whether MLflow and Prefect can keep databases under this path.

    Raises:
        ConfigurationError: If not, with the character that stands in the way.
    """
    text = str(path)
    found = next((part for part in ("?", *_IN_MEMORY) if part in text), None)
    if found is None:
        found = next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None)
    if found is not None:
        raise ConfigurationError(
            f"The root's path {text!r} contains {found!r}, which the address of a database cannot hold: MLflow and Prefect would "
            "write elsewhere. Every other character is allowed, blanks, '#' and '%' too. Choose another root with --root DIR or "
            "RLTRACK_ROOT, or rename the folder."
        )


def sqlite_uri(path: Path, driver: str = "") -> str:
    """Return a file's address for SQLAlchemy, MLflow, Prefect (driver ``aiosqlite``) and Optuna."""
    return f"sqlite{f'+{driver}' if driver else ''}:///{path.absolute()}"


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a sqlite address; None for any other address, and for a database in memory."""
    found = _SQLITE.fullmatch(uri)
    if found is None or found[1] in ("", ":memory:"):
        return None
    if found[1].startswith("file:"):  # sqlite's own form, where the rest is quoted
        return Path(unquote(found[1].removeprefix("file:")))
    return Path(found[1])


def read_only_uri(path: Path) -> str:
    """Return a file's address for ``sqlite3.connect(…, uri=True)``, to be read only."""
    return f"{file_uri(path)}?mode=ro"


def file_uri(path: Path) -> str:
    """Return a path's ``file:`` address."""
    return path.absolute().as_uri()


def file_path(location: str) -> Path | None:
    """Return the path of a location that may be a ``file:`` address or a path; None where it is on another machine."""
    if location.startswith("file:"):
        parts = urlsplit(location)
        return Path(unquote(parts.path)) if parts.netloc in ("", "localhost") and parts.path else None
    return None if re.match(r"[A-Za-z][\w+.-]*:", location) else Path(location)


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths lead to one place, whatever symbolic links they go through."""
    try:
        return one == other or one.resolve() == other.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False


def same_address(one: str, other: str) -> bool:
    """Whether two addresses are one, or of one sqlite file."""
    if one == other:
        return True
    paths = sqlite_path(one), sqlite_path(other)
    return paths[0] is not None and paths[1] is not None and same_place(paths[0], paths[1])


def moved(text: str, old: Path, new: Path) -> str:
    """Return a path or an address as it is after a folder was moved; what does not lie in that folder stays."""
    sqlite = [(sqlite_uri(old, driver), sqlite_uri(new, driver)) for driver in ("", "aiosqlite", "pysqlite")]
    for before, now in ((str(old), str(new)), (file_uri(old), file_uri(new)), *sqlite):
        if text == before or text.startswith(f"{before}/"):
            inside_already = text == now or text.startswith(f"{now}/")
            return text if inside_already else now + text[len(before) :]
    return text


def without_account(address: str) -> str:
    """Return a link without its account, so that it can be opened: one with a masked password cannot."""
    return re.sub(r"^([A-Za-z][\w+.-]*://)[^/?#]*@", r"\1", address)
