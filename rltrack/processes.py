"""Other processes: starting one in the background, whether one lives, and ending one with everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from rltrack.files import lock_holder

_POLL_SECONDS = 0.1
_KILL_SECONDS = 5.0


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter.

    Python does not search the current folder first, so that no file there takes the place of a package. Where the user's own code
    is imported, the folder is searched last (`named_code.make_current_folder_importable`).
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def spawn(
    command: Sequence[str], log: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a background process, in a session of its own: Ctrl-C at the terminal does not reach it, and it outlives us.

    Args:
        command: The program and its arguments.
        log: The file to which its output is appended; None for none.
        environment: Its whole environment; omitted: ours.

    Raises:
        OSError: If it cannot be started, or the log cannot be written.
    """
    with open(os.devnull if log is None else log, "ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=None if environment is None else dict(environment),
        )


def lives(pid: int | None) -> bool:
    """Whether a process lives; a zombie does not."""
    if pid is None:
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def holder_in_words(lock: Path) -> str:
    """Return which process holds a lock (`rltrack.files.take_lock`), also where the one that took it left it to others."""
    pid = lock_holder(lock)
    others = [] if pid is None or lives(pid) else _with_open_file(lock)
    if others:
        return f"process {', '.join(map(str, others))}, which process {pid} started before it ended"
    return f"process {pid or 'unknown'}"


def _with_open_file(path: Path) -> list[int]:
    """Return the processes of this machine that have a file open, as far as they can be looked into."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(file.path == str(path.resolve()) for file in process.open_files()):
                found.append(process.pid)
    return found


def end_session(pid: int, seconds: float = 10.0) -> None:
    """End a process that leads a session, and all of its group: SIGTERM, and SIGKILL to what is left."""
    for number, wait in ((signal.SIGTERM, seconds), (signal.SIGKILL, _KILL_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not _group_lives(pid):
                return
            time.sleep(_POLL_SECONDS)


def _group_lives(leader: int) -> bool:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and lives(process.pid):
                return True
    return False
