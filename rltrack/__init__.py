"""rltrack: train reinforcement-learning agents that people rely on.

The public names live in sub-modules and are imported when first used: ``import rltrack`` loads neither torch nor MLflow
nor Prefect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from rltrack.acceleration import accelerate as accelerate
    from rltrack.agents import AgentBase as AgentBase
    from rltrack.agents.checking import check_agent as check_agent
    from rltrack.agents.tracking_callback import JournalOutputFormat as JournalOutputFormat
    from rltrack.agents.tracking_callback import TrackingCallback as TrackingCallback
    from rltrack.config import LoopSettings as LoopSettings
    from rltrack.config import TrainingConfig as TrainingConfig
    from rltrack.errors import RltrackError as RltrackError
    from rltrack.registry.gate import Gate as Gate
    from rltrack.registry.promotion import promote as promote
    from rltrack.tracking.metrics import MetricsTracker as MetricsTracker
    from rltrack.training.hooks import EarlyStoppingHook as EarlyStoppingHook
    from rltrack.training.hooks import LoggingHook as LoggingHook
    from rltrack.training.hooks import TrainingHook as TrainingHook
    from rltrack.training.progress import TrainingProgress as TrainingProgress
    from rltrack.training.progress import TrainingState as TrainingState
    from rltrack.training.progress import TrainingStatistics as TrainingStatistics
    from rltrack.training.reporter import ProgressReporter as ProgressReporter
    from rltrack.training.strategies import TrainingStrategy as TrainingStrategy
    from rltrack.training.train_loop import TrainingLoop as TrainingLoop
    from rltrack.training.train_loop import create_training_loop as create_training_loop
    from rltrack.training.trainer import Trainer as Trainer
    from rltrack.training.trainer import load_agent as load_agent

_PUBLIC = {
    "AgentBase": "rltrack.agents",
    "EarlyStoppingHook": "rltrack.training.hooks",
    "Gate": "rltrack.registry.gate",
    "JournalOutputFormat": "rltrack.agents.tracking_callback",
    "LoggingHook": "rltrack.training.hooks",
    "LoopSettings": "rltrack.config",
    "MetricsTracker": "rltrack.tracking.metrics",
    "ProgressReporter": "rltrack.training.reporter",
    "RltrackError": "rltrack.errors",
    "TrackingCallback": "rltrack.agents.tracking_callback",
    "Trainer": "rltrack.training.trainer",
    "TrainingConfig": "rltrack.config",
    "TrainingHook": "rltrack.training.hooks",
    "TrainingLoop": "rltrack.training.train_loop",
    "TrainingProgress": "rltrack.training.progress",
    "TrainingState": "rltrack.training.progress",
    "TrainingStatistics": "rltrack.training.progress",
    "TrainingStrategy": "rltrack.training.strategies",
    "accelerate": "rltrack.acceleration",
    "check_agent": "rltrack.agents.checking",
    "create_training_loop": "rltrack.training.train_loop",
    "load_agent": "rltrack.training.trainer",
    "promote": "rltrack.registry.promotion",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rltrack' has no attribute '{name}'")


def _installed_version() -> str:
    from importlib import metadata  # half of the time that `import rltrack` would take

    try:
        return metadata.version("rltrack")
    except metadata.PackageNotFoundError:  # used from a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return __all__
