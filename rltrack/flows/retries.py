"""The retry policy of tasks: which failures are retried, and how often."""

from __future__ import annotations

import errno
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from rltrack.errors import CheckpointFailed, JournalFailed, RegistryUnavailable, RltrackError, RootNotWritable

RETRIES = 3
_PERMANENT_ERRNO = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ)
"""Errors of paths and names that a retry cannot fix."""
_TRANSIENT = (CheckpointFailed, JournalFailed, RootNotWritable, RegistryUnavailable)


def is_transient(error: object) -> bool:
    """Whether a retry may help: not after a bad configuration, a NaN, a missing package or a busy run."""
    if isinstance(error, RltrackError):
        return isinstance(error, _TRANSIENT)
    if isinstance(error, OSError) and error.errno in _PERMANENT_ERRNO:
        return False
    return isinstance(error, Exception) and not isinstance(error, ImportError | MemoryError | SyntaxError)


RETRIED: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": lambda task, task_run, state: is_transient(state.data),
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
