"""The promotion gate: a pure function of two lists of returns.

Challenger and champion play the same seeds, so that their returns are pairs. ``superior`` promotes if the confidence
interval of the mean paired difference is above zero; ``not_inferior`` if it is above ``-margin``. With a floor, a challenger
is also refused if its own mean return may be below that floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rltrack.errors import ConfigurationError
from rltrack.evaluation.statistics import Interval, bootstrap_interval

Kind = Literal["superior", "not_inferior"]
KINDS: tuple[Kind, ...] = ("superior", "not_inferior")
MIN_EPISODES = 30
"""With fewer pairs the intervals cover less than their level."""

_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Gate:
    """What a challenger must show.

    Attributes:
        kind: ``superior`` or ``not_inferior``.
        margin: δ in reward units: by how much a challenger may be worse (``not_inferior``), at least 0.
        episodes: How many both play, at least 30.
        level: Coverage of the intervals, in (0, 1). At 0.95 an equal challenger is promoted in 2.5 % of cases.
        floor: The lower end of the challenger's interval must reach this return; None for no floor.

    Raises:
        ConfigurationError: If a value is not allowed.
    """

    kind: Kind = "superior"
    margin: float = 0.0
    episodes: int = 100
    level: float = 0.95
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"The gate is {self.kind!r}. Allowed: {', '.join(KINDS)}.")
        if self.episodes < MIN_EPISODES:
            raise ConfigurationError(
                f"The gate's episodes are {self.episodes}; at least {MIN_EPISODES} are needed for a valid interval, "
                "and 100 or more to detect small differences."
            )
        if not 0.5 <= self.level < 1:
            raise ConfigurationError(f"The gate's level is {self.level}; it must be in [0.5, 1), such as 0.95.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ConfigurationError(
                f"The gate's margin is {self.margin}; it must be a number of at least 0, in reward units."
            )
        if self.margin and self.kind == "superior":
            raise ConfigurationError(
                "A margin belongs to the gate 'not_inferior'; 'superior' has none. Leave out one of them."
            )
        if self.kind == "not_inferior" and not self.margin:
            raise ConfigurationError(
                "The gate 'not_inferior' needs a margin: by how much a challenger may be worse, in reward units (--margin 5)."
            )
        if self.floor is not None and not math.isfinite(self.floor):
            raise ConfigurationError(f"The gate's floor is {self.floor}; it must be a finite return.")

    @property
    def label(self) -> str:
        """The gate in words; equal gates have equal labels."""
        words = f"{self.kind}, {self.episodes} episodes, level {float(self.level)}"
        words += f", margin {float(self.margin)}" if self.margin else ""
        return words if self.floor is None else f"{words}, floor {float(self.floor)}"

    def to_record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "kind": self.kind,
            "margin": self.margin,
            "episodes": self.episodes,
            "level": self.level,
            "floor": self.floor,
        }


@dataclass(frozen=True, slots=True)
class GateResult:
    """The decision of a gate.

    Attributes:
        promoted: Whether the challenger passes.
        reason: Why, with the numbers.
        interval: Of the challenger's mean return.
        difference: Mean paired difference, challenger minus champion; None without a champion.
        difference_interval: Its interval; None without a champion.
    """

    promoted: bool
    reason: str
    interval: Interval
    difference: float | None = None
    difference_interval: Interval | None = None


def decide(challenger: Sequence[float], champion: Sequence[float] | None, gate: Gate, *, seed: int = 0) -> GateResult:
    """Decide whether a challenger becomes champion.

    Args:
        challenger: Its returns, shape ``(n,)``, in reward units.
        champion: The champion's returns on the same seeds, shape ``(n,)``; None if there is none yet.
        gate: What must be shown.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: If a return is NaN or infinite, the lists are no pairs, or there are too few.
    """
    ours = _checked(challenger, "challenger", gate)
    interval = bootstrap_interval(ours, level=gate.level, seed=seed, resamples=_RESAMPLES)
    percent = f"{100 * gate.level:g} % interval"
    own = f"mean return {ours.mean():.6g}, {percent} {interval.low:.6g} to {interval.high:.6g}"
    above_floor = gate.floor is None or interval.low >= gate.floor
    if champion is None:
        if gate.floor is None:
            return GateResult(True, f"the first champion, with no floor to reach ({own})", interval)
        word = "reaches" if above_floor else "does not reach"
        return GateResult(above_floor, f"the first champion {word} the floor of {gate.floor:g} ({own})", interval)
    theirs = _checked(champion, "champion", gate)
    if ours.size != theirs.size:
        raise ConfigurationError(f"{ours.size} and {theirs.size} returns are not pairs; both must play the same seeds.")
    paired = ours - theirs
    difference = bootstrap_interval(paired, level=gate.level, seed=seed, resamples=_RESAMPLES)
    least = -gate.margin
    passes = difference.low > least
    wanted = "0" if gate.kind == "superior" else f"-{gate.margin:g}"
    found = (
        f"difference {paired.mean():.6g} on {ours.size} paired episodes, {percent} {difference.low:.6g} to "
        f"{difference.high:.6g}, which {'is' if passes else 'is not'} above {wanted}"
    )
    if passes and not above_floor:
        found += f"; but its {own} does not reach the floor of {gate.floor:g}"
    return GateResult(passes and above_floor, found, interval, float(paired.mean()), difference)


def _checked(returns: Sequence[float], whose: str, gate: Gate) -> np.ndarray:
    values = np.asarray(returns, dtype=np.float64)
    if values.size < gate.episodes:
        raise ConfigurationError(f"The {whose} played {values.size} episodes, the gate needs {gate.episodes}.")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ConfigurationError(
            f"The {whose}'s return of episode {bad[0]} is {values[bad[0]]}: no decision is possible, and nothing was changed. "
            "Check the environment's rewards."
        )
    return values
