"""The thread that commits versions during training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from rltrack.checkpoints.store import CheckpointStore, Prepared
from rltrack.checkpoints.version import Version

MAX_WAITING = 2
"""Prepared versions that may wait; the next one waits for the disk, so that memory stays bounded."""


class CheckpointWriter:
    """Commits prepared versions in order, one at a time, in a thread of its own.

    The thread gets bytes; it touches no random stream and nothing that training works with.

    Args:
        store: Where to.
        before: Called in that thread before each commit; what it raises is that commit's outcome.
    """

    def __init__(self, store: CheckpointStore, before: Callable[[], None]) -> None:
        self._store = store
        self._before = before
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rltrack-checkpoints")
        self._waiting: deque[Future[Version]] = deque()

    def submit(self, prepared: Prepared) -> None:
        """Commit a version soon; wait if too many wait already."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting[-MAX_WAITING].exception()
        self._waiting.append(self._pool.submit(self._commit, prepared))

    def take(self, *, wait: bool = False) -> list[Future[Version]]:
        """Return the commits that have ended since the last call, in order; with `wait`, all of them."""
        taken = []
        while self._waiting and (wait or self._waiting[0].done()):
            future = self._waiting.popleft()
            future.exception()  # waits
            taken.append(future)
        return taken

    def close(self) -> None:
        """Wait for what was submitted, and end the thread."""
        self._pool.shutdown(wait=True)

    def _commit(self, prepared: Prepared) -> Version:
        self._before()
        return self._store.write(prepared)
