"""Paths made from names; atomic writing of files; locks between processes.

Names from users or other machines become part of a path only through `inside` or `folder_name`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from pathlib import Path

from rltrack.errors import ConfigurationError

_LONGEST, _LONGEST_PLAIN, _LONGEST_STEM = 255, 150, 60


def inside(folder: Path, name: str) -> Path:
    """Return ``folder / name``, where the name is that of an entry directly in the folder.

    Raises:
        ConfigurationError: If the name leads elsewhere, cannot be a file's name, or is a symbolic link to another place.
    """
    if name in ("", ".", "..") or not name.isprintable() or re.search(r"[/\\]", name):
        raise ConfigurationError(f"{_cut(name)} is not the name of a file in {folder}.")
    if len(os.fsencode(name)) > _LONGEST:
        raise ConfigurationError(f"{_cut(name)} is too long for the name of a file; {_LONGEST} bytes are allowed.")
    path = folder / name
    if path.is_symlink() and not leads_into(path, folder):
        raise ConfigurationError(
            f"{path} is a symbolic link that leads out of {folder}; it is not followed. Replace it by the folder itself."
        )
    return path


def leads_into(path: Path, folder: Path) -> bool:
    """Whether a path, with every symbolic link followed, is in a folder."""
    try:
        target = path.resolve()
        return not target.is_symlink() and target.is_relative_to(
            folder.resolve()
        )  # Python 3.13 returns a circle of links as it is
    except (OSError, RuntimeError):  # and older ones refuse it
        return False


def folder_name(text: str) -> str:
    """Return a folder's name for any text: the text itself if it is short and plain, else a part of it with a hash.

    The mapping is injective: ``~`` precedes the hash, and occurs in no plain name.
    """
    plain = all(letter.isalnum() or letter in " ._-+=,@()" for letter in text)
    ends = text[:1].isalnum() and text[-1:] not in (" ", ".")
    if plain and ends and ".." not in text and len(os.fsencode(text)) <= _LONGEST_PLAIN:
        return text
    stem = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:_LONGEST_STEM]
    return f"{stem or 'folder'}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]}"


def _cut(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}…")


def fsync_directory(path: Path) -> None:
    """Make a rename or a new entry in this folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a new file and fsync it; the caller fsyncs the folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_file(path: Path, data: bytes) -> None:
    """Create a new file atomically: readers never see an empty one, also after a kill.

    Raises:
        FileExistsError: If it exists.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_bytes(draft, data)
    try:
        os.link(draft, path)
    finally:
        draft.unlink()


def replace_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a text file atomically. With mode 0o600 only its owner can read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    write_bytes(temporary, text.encode(), mode)
    os.replace(temporary, path)
    fsync_directory(path.parent)


def delete_path(path: Path) -> None:
    """Delete a file, a link or a folder; never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def make_private_folder(path: Path) -> None:
    """Create a folder that only its owner may enter; an existing one keeps its mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


_held: dict[int, os.stat_result] = {}
"""The descriptors of locks that were taken, with their files; one that was closed since has another file, or none."""


def _leave_locks_to_parent() -> None:
    """In a process that was forked: let go of the parent's locks, which otherwise last until both have ended.

    A descriptor stays open, on nothing, so that code of the parent that runs on here may close it.
    """
    for descriptor, file in _held.items():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), file):
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, descriptor, inheritable=False)
                os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def take_lock(path: Path, wait_seconds: float = 0.0) -> int | None:
    """Take an exclusive ``flock`` on a file, and write this process's id into it.

    Processes that are forked from this one do not hold it.

    Args:
        path: The file; created if missing.
        wait_seconds: How long to retry. `is_locked` in another process holds the lock for an instant, so a lock that must
            not fail for that reason should wait briefly.

    Returns:
        A descriptor that holds the lock until it is closed; None if another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held[descriptor] = os.fstat(descriptor)
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock now."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_holder(path: Path) -> int | None:
    """Return the process id that was last written into a lock's file, or None."""
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None
