"""Versions of a run: how they are written, found, verified and kept."""

from rltrack.checkpoints.retention import Retention, best_first
from rltrack.checkpoints.store import CheckpointStore
from rltrack.checkpoints.version import Version
from rltrack.checkpoints.writer import CheckpointWriter

__all__ = ["CheckpointStore", "CheckpointWriter", "Retention", "Version", "best_first"]
