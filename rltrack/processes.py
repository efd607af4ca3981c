"""Other processes: whether one lives, and ending one with everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

_POLL_SECONDS = 0.1
_KILL_SECONDS = 5.0


def lives(pid: int | None) -> bool:
    """Whether a process lives; one that ended and that nobody has asked for yet does not."""
    if pid is None:
        return False
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end_session(pid: int, seconds: float = 10.0) -> None:
    """End a process that leads a session, and all of its group: SIGTERM, and SIGKILL to what is left.

    Args:
        pid: The leader.
        seconds: How long SIGTERM may take.
    """
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
