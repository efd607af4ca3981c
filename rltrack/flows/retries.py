"""Which failures a task tries again after, and how often."""

from __future__ import annotations

import errno
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.tasks import exponential_backoff

from rltrack.errors import CheckpointFailed, JournalFailed, RegistryUnavailable, RltrackError, RootNotWritable

RETRIES = 3
_LASTING = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ)
"""What a path or a name cannot do today it cannot do tomorrow."""
_PASSING = (CheckpointFailed, JournalFailed, RootNotWritable, RegistryUnavailable)


def can_pass(error: object) -> bool:
    """Whether trying again may help: not with a bad configuration, a NaN, a missing package or a run that is taken."""
    if isinstance(error, RltrackError):
        return isinstance(error, _PASSING)
    if isinstance(error, OSError) and error.errno in _LASTING:
        return False
    return isinstance(error, Exception) and not isinstance(error, ImportError | MemoryError | SyntaxError)


def _retry_if(task: Any, task_run: Any, state: State[Any]) -> bool:
    return can_pass(state.data)


RETRIED: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _retry_if,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
