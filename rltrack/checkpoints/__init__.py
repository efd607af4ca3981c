"""Versions of a run: how they are written, found, verified and kept."""

from rltrack.checkpoints.retention import Retention, best_first
from rltrack.checkpoints.store import CheckpointStore, Version

__all__ = ["CheckpointStore", "Retention", "Version", "best_first"]
