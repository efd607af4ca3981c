"""Positions in a training: at which counts something is due, how often, and where the budget ends.

A *mark* is an absolute number of env steps or episodes at which something is due.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Counters(Protocol):
    """What a strategy needs to know of the progress."""

    env_steps: int
    episodes: int
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class Mark:
    """An absolute position; reached when any of its counts is.

    Attributes:
        env_steps: Env steps, or infinity.
        episodes: Finished episodes, or infinity.
    """

    env_steps: float = math.inf
    episodes: float = math.inf

    def is_reached(self, at: Counters) -> bool:
        """Whether the counters have come this far."""
        return at.env_steps >= self.env_steps or at.episodes >= self.episodes

    @property
    def text(self) -> str:
        """In words: ``10,000 env steps``, ``50 episodes``, or both."""
        counts = ((self.env_steps, "env steps"), (self.episodes, "episodes"))
        return " or ".join(f"{count:,} {unit}" for count, unit in counts if count != math.inf) or "the end"

    def earliest(self, other: Mark) -> Mark:
        """Return the mark that is reached as soon as either is."""
        return Mark(min(self.env_steps, other.env_steps), min(self.episodes, other.episodes))


NEVER = Mark()


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often something is due; None for never.

    Attributes:
        env_steps: Env steps in between.
        episodes: Episodes in between.
    """

    env_steps: int | None = None
    episodes: int | None = None

    def after(self, at: Counters) -> Mark:
        """Return the next mark: the next multiples beyond the counters."""
        return Mark(_next_multiple(at.env_steps, self.env_steps), _next_multiple(at.episodes, self.episodes))


def _next_multiple(count: int, interval: int | None) -> float:
    return math.inf if interval is None else (count // interval + 1) * interval


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train; None for no bound.

    Attributes:
        total_timesteps: Env steps.
        total_episodes: Finished episodes.
        max_seconds: Seconds of training, over all attempts. A cap: never part of a schedule.
    """

    total_timesteps: int | None = None
    total_episodes: int | None = None
    max_seconds: float | None = None

    @property
    def mark(self) -> Mark:
        """Where the counted budgets end."""
        return Mark(self.total_timesteps or math.inf, self.total_episodes or math.inf)

    def spent(self, at: Counters) -> str | None:
        """Return which budget is spent, in words, or None."""
        if self.total_timesteps is not None and at.env_steps >= self.total_timesteps:
            return f"all {self.total_timesteps:,} env steps are done"
        if self.total_episodes is not None and at.episodes >= self.total_episodes:
            return f"all {self.total_episodes:,} episodes are done"
        if self.max_seconds is not None and at.elapsed_seconds >= self.max_seconds:
            return f"max_seconds ({self.max_seconds:g} s) is spent"
        return None

    def is_time_up(self, at: Counters) -> bool:
        """Whether only the cap on seconds is spent, so that an attempt with a greater one can resume."""
        return self.max_seconds is not None and at.elapsed_seconds >= self.max_seconds and not self.mark.is_reached(at)
