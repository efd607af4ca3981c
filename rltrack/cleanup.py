"""Cleaning up: an error on the way out is a warning. It replaces neither a result nor an earlier error."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from rltrack.secrets import without_secrets
from rltrack.text import printable

_logger = logging.getLogger("rltrack")
_MOST_REMEMBERED = 1000
_told: set[str] = set()
"""Warnings of this process: one environment is closed several times, and says the same each time."""


@contextlib.contextmanager
def cleaning_up(what: str) -> Iterator[None]:
    """Inside, an error becomes a warning, once for each text; ``sys.exit()`` too, with which some environments end.

    Args:
        what: What is done, for the warning, such as ``Closing Robot``.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        said = without_secrets(" ".join(str(error).split()))
        message = printable(f"{what} failed, which changes no result: {type(error).__name__}: {said}")
        if message not in _told:
            if len(_told) < _MOST_REMEMBERED:
                _told.add(message)
            _logger.warning(message)


def close_all(*things: Any) -> None:
    """Close each of several things that others wrote, whatever the ones before did; None is passed over.

    A vectorised environment stops at the first environment that does not close: then the rest of them are closed one by one.
    """
    for thing in things:
        if thing is None:
            continue
        closed = False
        with cleaning_up(f"Closing {_name(thing)}"):
            thing.close()
            closed = True
        if not closed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Gymnasium's, on closing what is closed
                for env in _parallel(thing):
                    with contextlib.suppress(Exception, SystemExit):
                        env.close()


def _name(thing: Any) -> str:
    """Whose ``close`` it is that may raise: the innermost of a chain of wrappers."""
    names: list[str] = []
    while thing is not None and len(names) < 100:
        names.append(type(thing).__name__)
        inside = vars(thing) if hasattr(thing, "__dict__") else {}
        envs = inside.get("envs")
        thing = envs[0] if isinstance(envs, list) and envs else inside.get("env", inside.get("venv"))
    return names[-1]


def _parallel(thing: Any) -> list[Any]:
    inside = thing
    for _ in range(100):
        envs = vars(inside).get("envs") if hasattr(inside, "__dict__") else None
        if isinstance(envs, list):
            return envs
        inside = vars(inside).get("venv") if hasattr(inside, "__dict__") else None
        if inside is None:
            break
    return []
