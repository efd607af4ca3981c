"""Names of metrics, parameters and tags: as the journal keeps them, and as MLflow takes them, with no two made one."""

from __future__ import annotations

import functools
import hashlib
import posixpath
import re

LONGEST = 250
"""Characters that MLflow takes in a name."""

_REFUSED = re.compile(r"[^/\w.\- :]")
_DIGITS = 10
_RENAMED = re.compile(rf".*-h[0-9a-f]{{{_DIGITS}}}", re.DOTALL)


def journal_name(name: object) -> str:
    """Return a name as text that can be written as UTF-8."""
    text = name if isinstance(name, str) else str(name)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@functools.lru_cache(maxsize=4096)
def mlflow_name(name: str) -> str:
    """Return the name under which MLflow keeps something: the name itself, if MLflow takes it.

    Otherwise what MLflow refuses is replaced, a long name is cut, and ``-h`` with ten digits of the name's SHA-256 is added.
    So different names stay different, and a name is renamed alike in every process. A name that already ends like this is
    renamed too, as it could be taken for another's.
    """
    if _is_taken_as_it_is(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:_DIGITS]
    cleaned = posixpath.normpath(_REFUSED.sub("_", name.strip()).replace("..", "__")).strip("/. ")
    return f"{cleaned[: LONGEST - _DIGITS - 2].rstrip('/. ') or 'unnamed'}-h{digest}"


@functools.lru_cache(maxsize=4096)
def former_mlflow_name(name: str) -> str:
    """Return the name that earlier versions of rltrack, which let different names become one, wrote to MLflow."""
    return re.sub(r"/{2,}", "/", _REFUSED.sub("_", name)).replace("..", "__").strip("/")[:LONGEST]


def _is_taken_as_it_is(name: str) -> bool:
    return (
        0 < len(name) <= LONGEST
        and name == name.strip()
        and _REFUSED.search(name) is None
        and _RENAMED.fullmatch(name) is None
        and posixpath.normpath(name) == name
        and not name.startswith(("/", ".."))
        and name != "."
    )
