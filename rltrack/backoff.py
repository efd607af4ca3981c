"""Backoff: how long to wait before something that failed is tried again."""

from __future__ import annotations

import random
import time

_random = random.SystemRandom()
"""Its own source: what waits must not take numbers from a training's random streams."""


class Backoff:
    """Doubles the wait from failure to failure, up to a longest one; with jitter, so that many do not come back at once.

    Args:
        first: Seconds after the first failure.
        longest: Seconds at most.
        jitter: The share of each wait that is drawn at random, in [0, 1].

    Attributes:
        failures: How many there were in a row.
    """

    def __init__(self, first: float, longest: float, jitter: float = 0.25) -> None:
        self.failures = 0
        self._first, self._longest, self._jitter = first, longest, jitter
        self._not_before = float("-inf")

    def is_due(self) -> bool:
        """Whether it may be tried now."""
        return time.monotonic() >= self._not_before

    def failed(self, *, wait: float | None = None, since: float | None = None) -> float:
        """Count a failure.

        Args:
            wait: Seconds to wait instead of the doubled ones.
            since: From when on they count, as `time.monotonic` has it; omitted: from now on.

        Returns:
            Seconds to wait.
        """
        if wait is None:
            whole = min(self._longest, self._first * 2.0 ** min(self.failures, 60))
            wait = whole * (1.0 - self._jitter * _random.random())
        self.failures += 1
        self._not_before = (time.monotonic() if since is None else since) + wait
        return wait

    def succeeded(self) -> None:
        """Start again from the first interval."""
        self.failures = 0
        self.hurry()

    def hurry(self) -> None:
        """Do not wait any longer this time."""
        self._not_before = float("-inf")
