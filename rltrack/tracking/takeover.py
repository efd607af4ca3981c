"""The heartbeat of the process that delivers a run, and ending one that hangs or waits for the user."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from rltrack.errors import RunBusy
from rltrack.files import lock_holder, take_lock
from rltrack.runs import RunDirectory
from rltrack.tracking.bookmark import read_bookmark

HEARTBEAT_SECONDS = 1.0
STALLED_SECONDS = 15.0
"""Without a heartbeat for so long, a process does not run: it is stopped, or its machine sleeps."""

_END_SECONDS = 10.0


@contextlib.contextmanager
def heartbeat(descriptor: int) -> Iterator[None]:
    """Set the time of the lock's file every second, for others to see that this process runs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk: no reason to end
                os.utime(descriptor)

    thread = threading.Thread(target=beat, name="rltrack-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def silent_seconds(run: RunDirectory) -> float | None:
    """Return how long ago the process that delivers a run gave its last sign of life; None if none does."""
    if not run.is_shipped():
        return None
    try:
        return max(0.0, time.time() - run.shipper_lock.stat().st_mtime)
    except OSError:
        return None


def is_stalled(run: RunDirectory) -> bool:
    """Whether a process holds the delivery of a run and does not run itself."""
    silent = silent_seconds(run)
    return silent is not None and silent > STALLED_SECONDS


def waits_for_a_person(run: RunDirectory) -> bool:
    """Whether delivery waits for an action of the user."""
    found = read_bookmark(run)
    return found is not None and found.problem is not None and found.problem.kind == "person"


def hold_delivery(run: RunDirectory) -> int | None:
    """Take the lock of a run's delivery, also from a process that hangs, or that waits for the user.

    Returns:
        A descriptor that holds it until it is closed; None if a process is delivering.
    """
    descriptor = take_lock(run.shipper_lock, 0.5)
    if descriptor is None and (is_stalled(run) or waits_for_a_person(run)):
        with contextlib.suppress(RunBusy):
            return take_over(run)
    return descriptor


def take_over(run: RunDirectory) -> int:
    """End the process that delivers a run, and return a descriptor that holds the delivery's lock.

    What it was doing is done again: everything can be delivered twice without doubling.

    Raises:
        RunBusy: If it cannot be proved that the process delivers this run, or it does not end.
    """
    pid = lock_holder(run.shipper_lock)
    if run.is_shipped() and pid is not None and pid != os.getpid():
        if not _delivers(pid, run.shipper_lock):
            raise RunBusy(
                f"Run {run.name} is held by process {pid}, which is not provably one of rltrack's that delivers it; it was left "
                f"alone. Look at it (ps -p {pid} -f), and end it yourself if it is to go."
            )
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).kill()  # a stopped process receives no other signal
    descriptor = take_lock(run.shipper_lock, _END_SECONDS)
    if descriptor is None:
        raise RunBusy(
            f"Process {lock_holder(run.shipper_lock) or 'unknown'} still holds the delivery of run {run.name}."
        )
    return descriptor


def _delivers(pid: int, lock: Path) -> bool:
    """Whether a process is ours, is rltrack, and has this lock's file open."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        ours = process.uids().real == os.getuid()
        is_rltrack = any(word.startswith("rltrack.") or Path(word).name == "rltrack" for word in words)
        return ours and is_rltrack and any(os.path.samefile(found.path, lock) for found in process.open_files())
    except (psutil.Error, OSError):
        return False
