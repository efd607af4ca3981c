"""What another process asks of the process that trains a run: a file in the run's folder, and a file with the answer.

Who may write into the folder may ask. There is one request at a time; who asks creates the file, and who trains takes it away.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrack.errors import RunBusy
from rltrack.files import create_file, replace_text
from rltrack.provenance import user_name

if TYPE_CHECKING:
    from rltrack.runs.folder import RunDirectory

VERBS = ("stop", "pause", "continue", "checkpoint")
_REQUEST, _ANSWER = "request.json", "answer.json"
_MAX_BYTES, _MAX_TEXT = 4096, 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked.

    Attributes:
        id: Its own id.
        verb: One of `VERBS`.
        by: Who asks: ``user@host``.
    """

    id: str
    verb: str
    by: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What happened.

    Attributes:
        id: Of the request.
        done: Whether it was done.
        text: What happened, or why not, in words.
    """

    id: str
    done: bool
    text: str


def ask(run: RunDirectory, verb: str) -> Request:
    """Leave a request for the process that trains the run.

    Raises:
        RunBusy: If another request waits.
        OSError: If the run's folder cannot be written.
    """
    request = Request(uuid.uuid4().hex, verb, f"{user_name() or os.getuid()}@{socket.gethostname()}")
    try:
        create_file(run.path / _REQUEST, json.dumps(asdict(request)).encode())
    except FileExistsError:
        raise RunBusy(
            f"Another request to run {run.name} waits for the end of the iteration in flight. Try again after it; or delete "
            f"{run.path / _REQUEST}."
        ) from None
    return request


def peek(run: RunDirectory) -> Request | None:
    """Return the request that waits, or None; a file that holds none is removed."""
    path = run.path / _REQUEST
    if not path.exists():
        return None
    data = _read(path)
    if data is not None and data.get("verb") in VERBS and all(_is_text(data.get(key)) for key in ("id", "by")):
        return Request(data["id"], data["verb"], data["by"])
    withdraw(run)
    return None


def withdraw(run: RunDirectory) -> None:
    """Remove the request that waits, if there is one."""
    with contextlib.suppress(OSError):
        (run.path / _REQUEST).unlink()


def answer(run: RunDirectory, request: Request, text: str, *, done: bool = True) -> None:
    """Write what happened; a folder that cannot be written does not end a training."""
    with contextlib.suppress(OSError):
        replace_text(run.path / _ANSWER, json.dumps(asdict(Answer(request.id, done, text))))


def answer_to(run: RunDirectory, request: Request) -> Answer | None:
    """Return the answer to a request, if it is there."""
    data = _read(run.path / _ANSWER)
    if data is None or data.get("id") != request.id or not _is_text(data.get("text")):
        return None
    return Answer(request.id, data.get("done") is True, data["text"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb", opener=_open_without_links) as file:
            data = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _open_without_links(path: str, flags: int) -> int:
    """Neither follow a link nor wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
