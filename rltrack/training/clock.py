"""The clock of a training: how long it has trained, how fast it is, and when its seconds are spent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltrack.training.progress import TrainingProgress
    from rltrack.training.strategies import Strategy

RATE_SECONDS = 0.05
"""How often speed and time left are computed, at boundaries."""

OVERTIME_SECONDS, OVERTIME_SHARE = 10.0, 0.1
"""How long an evaluation may continue when `max_seconds` is spent: in seconds, or as a share of `max_seconds` if that is more."""


class TrainingClock:
    """Adds up the seconds of training in the progress; pauses are left out.

    Args:
        progress: Has the seconds of all attempts.
        strategy: Has the budget, and says how much of it is left.
    """

    def __init__(self, progress: TrainingProgress, strategy: Strategy) -> None:
        self._progress, self._strategy = progress, strategy
        self.max_seconds = strategy.budget.max_seconds
        self._counted = self._rated = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of training until now; the progress has those until the last boundary."""
        return self._progress.elapsed_seconds + time.monotonic() - self._counted

    def start(self) -> None:
        """Training begins now."""
        self._counted = self._rated = time.monotonic()
        self._progress.remaining = self._left()
        self._progress.update_performance_stats(self._counted)

    def skip(self) -> None:
        """Leave out the time since the last boundary: it was a pause."""
        now = time.monotonic()
        self._progress.leave_out(now - self._counted)
        self._counted = now

    def advance(self) -> None:
        """Count the time since the last boundary, and compute what is left of the budget."""
        now, progress = time.monotonic(), self._progress
        progress.elapsed_seconds += now - self._counted
        self._counted = now
        progress.remaining = self._left()
        if now - self._rated >= RATE_SECONDS:
            self._rated = now
            progress.update_performance_stats(now)

    def _left(self) -> float:
        return min(max(self._strategy.remaining(self._progress), 0.0), 1.0)

    def is_overtime(self, elapsed_seconds: float | None = None) -> bool:
        """Whether even an evaluation must end: `max_seconds` is spent, and what a final evaluation is given on top.

        Args:
            elapsed_seconds: Seconds of training; omitted: until now.
        """
        if self.max_seconds is None:
            return False
        elapsed = self.elapsed_seconds if elapsed_seconds is None else elapsed_seconds
        return elapsed >= self.max_seconds + max(OVERTIME_SECONDS, OVERTIME_SHARE * self.max_seconds)
