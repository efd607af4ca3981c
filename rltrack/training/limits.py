"""What ends a training that nobody asked to end: too much memory, and numbers that are no numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rltrack.agents.protocol import POLICY_PARTS
from rltrack.checkpoints.encoding import find_nonfinite
from rltrack.errors import TrainingDiverged

if TYPE_CHECKING:
    from rltrack.training.progress import TrainingProgress
    from rltrack.training.setup import SetUp

RESOURCES_EVERY_SECONDS = 5.0
MEMORY_EVERY_SECONDS = 1.0


class ResourceWatch:
    """Looks at memory, CPU and GPU now and then, at boundaries.

    Args:
        progress: Where the last look is kept.
        memory_limit_mb: Resident memory of training and its environment workers that is allowed, in MB; None for any.
    """

    def __init__(self, progress: TrainingProgress, memory_limit_mb: float | None) -> None:
        self.exceeded: str | None = None
        """What was exceeded, in words; None while all is well."""
        self._progress = progress
        self._limit = memory_limit_mb
        self._looked = float("-inf")

    def look(self) -> None:
        """Look if it is time to: each second where there is a limit, else every five."""
        now = time.monotonic()
        if now - self._looked < (RESOURCES_EVERY_SECONDS if self._limit is None else MEMORY_EVERY_SECONDS):
            return
        self._looked = now
        resources = self._progress.update_resource_usage()
        if self._limit is not None and resources.memory_mb > self._limit:
            self.exceeded = (
                f"training holds {resources.memory_mb:,.0f} MB, memory_limit_mb is {self._limit:,.0f}. A checkpoint was "
                "written; give it more memory, fewer environments or a smaller buffer, and resume."
            )


def refuse_nonfinite_losses(losses: Mapping[str, float], env_steps: int) -> None:
    """Raise if a loss is NaN or infinite.

    Raises:
        TrainingDiverged: With the loss's key and value.
    """
    for key, value in losses.items():
        if value - value != 0.0:  # NaN and infinities
            raise TrainingDiverged(
                f"{key} is {value} at {env_steps} env steps. The last version is good; lower the learning rate or normalise "
                "observations and rewards, and start anew or from that version."
            )


def refuse_nonfinite_weights(state: Mapping[str, Any], env_steps: int) -> None:
    """Raise if a weight of the policy is NaN or infinite, so that no bad version is written.

    Raises:
        TrainingDiverged: With the names of the first such weights.
    """
    bad = find_nonfinite(state.get("policy"))
    if bad:
        raise TrainingDiverged(
            f"Weights became NaN or infinite before {env_steps} env steps: {', '.join(bad[:5])}. No version was written. "
            "Lower the learning rate or normalise observations and rewards."
        )


def refuse_divergence(parts: SetUp, env_steps: int, error: Exception) -> None:
    """Say what it was, if NaN weights are behind an error: torch's distributions refuse them before any loss is told.

    Raises:
        TrainingDiverged: If a weight is NaN or infinite.
    """
    if parts.can_capture:
        try:
            refuse_nonfinite_weights(parts.capture(POLICY_PARTS), env_steps)
        except TrainingDiverged as diverged:
            raise diverged from error
