"""What bounds episodes that do not end, and evaluations that consist of them."""

from __future__ import annotations

from typing import NamedTuple

SECONDS_WITHOUT_END = 600.0
"""How long an evaluation may take in which no episode ends, unless it names a cap."""


class EpisodeLimits(NamedTuple):
    """What bounds an evaluation whose episodes do not end.

    Attributes:
        max_steps: Env steps of one episode; None for `UNLIMITED_EPISODE_STEPS` where the environment has no limit of its own.
        max_seconds: Seconds of the evaluation; None for `SECONDS_WITHOUT_END` as long as no episode has ended.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
