"""Runs: their folders, who writes their records, and what the records say."""

from rltrack.runs.configuration import StoredConfiguration
from rltrack.runs.folder import DEFAULT_ROOT, Root, RunDirectory, resolve_root, run_stem
from rltrack.runs.history import RunHistory, RunStatus
from rltrack.runs.ref import RunRef

__all__ = [
    "DEFAULT_ROOT",
    "Root",
    "RunDirectory",
    "RunHistory",
    "RunRef",
    "RunStatus",
    "StoredConfiguration",
    "resolve_root",
    "run_stem",
]
