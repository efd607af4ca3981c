"""Errors that rltrack raises on purpose.

Each message says what was asked, what was found, what is allowed and what to do. Each class also derives from the
built-in exception that a caller would expect, so that ``except ValueError`` works without knowing rltrack.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RltrackError(Exception):
    """Base class of every error that rltrack raises on purpose."""


class ConfigurationError(RltrackError, ValueError):
    """A setting is unknown, contradictory or out of range."""


class NotAllowed(ConfigurationError):
    """Parameters from a server name something that this worker does not allow."""


class MissingExtra(RltrackError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class NameTaken(RltrackError, FileExistsError):
    """A run of this name exists already, with another configuration."""


class RunNotFound(RltrackError, FileNotFoundError):
    """No run of this name exists under the root."""


class RunBusy(RltrackError, BlockingIOError):
    """Another process is training this run."""


class RunTakenOver(RunBusy):
    """A trainer on another machine resumed this run."""


class RootNotWritable(RltrackError, PermissionError):
    """The folder of runs cannot be written."""


class CheckpointNotFound(RltrackError, FileNotFoundError):
    """No committed version matches the request."""


class CheckpointCorrupt(RltrackError, ValueError):
    """A version does not verify against its manifest."""


class CheckpointFailed(RltrackError, OSError):
    """A version could not be written."""


class NotCapturable(RltrackError, TypeError):
    """The state of an environment cannot be captured, so that a resume starts a new episode."""


class ResumeMismatch(RltrackError, RuntimeError):
    """A restored environment differs from what was recorded, so that an exact resume is not possible."""


class JournalFailed(RltrackError, OSError):
    """The journal could not be written; training cannot continue without it."""


class JournalDamaged(RltrackError, ValueError):
    """A line of a journal is not a record that training wrote."""


class RunDamaged(RltrackError, ValueError):
    """A file of a run is missing or damaged, and there is no other copy of its content."""


class TrainingDiverged(RltrackError, ArithmeticError):
    """A loss or a weight became NaN or infinite."""


class MemoryLimitExceeded(RltrackError, MemoryError):
    """Training and its environment workers hold more memory than `memory_limit_mb` allows."""


class EvaluationUnavailable(RltrackError, RuntimeError):
    """An evaluation was requested, but no environment for it could be built."""


class PolicyNotStorable(RltrackError, TypeError):
    """A policy cannot be stored as a model."""


class ModelNotFound(RltrackError, LookupError):
    """The registry has no such model, version or alias."""


class ModelBroken(RltrackError, FileNotFoundError):
    """A stored model's files are missing or cannot be read."""


class SchemaMismatch(RltrackError, RuntimeError):
    """A database has the schema of another version of its program than the installed one."""


class RegistryUnavailable(RltrackError, ConnectionError):
    """The model registry does not answer, or refuses."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest allowed names, or an empty string."""
    by_lower = {str(item).lower(): str(item) for item in allowed}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)
    if not near:
        return ""
    return f" Did you mean {' or '.join(repr(by_lower[item]) for item in near)}?"
