"""What was accelerated, and why the rest was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One part of a training.

    Attributes:
        name: Such as ``update``.
        accelerated: Whether it runs faster now.
        reason: Why it does not; empty where it does.
    """

    name: str
    accelerated: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: " + ("accelerated" if self.accelerated else f"left to Stable-Baselines3: {self.reason}")


@dataclass(frozen=True)
class Report:
    """What `rltrack.accelerate` did to a model.

    Attributes:
        parts: Every part, in the order in which a training meets them.
        check_seconds: Wall time of the check that compared the results bit by bit.
    """

    parts: tuple[Part, ...]
    check_seconds: float
    _undo: Callable[[], None] = field(repr=False, compare=False)

    @property
    def accelerated(self) -> tuple[str, ...]:
        """Names of the parts that run faster now."""
        return tuple(part.name for part in self.parts if part.accelerated)

    def in_short(self) -> dict[str, str]:
        """Return what was ``chosen`` and the ``reason``, each in a line, for the record of a training."""
        checked = f"checked bit by bit in {self.check_seconds:.2f} s"
        left: dict[str, list[str]] = {}
        for part in self.parts:
            if not part.accelerated:
                left.setdefault(part.reason, []).append(part.name)
        reasons = "; ".join(f"{', '.join(names)} not: {reason}" for reason, names in left.items())
        if not left:
            return {"chosen": "on", "reason": f"all parts, {checked}"}
        if not self.accelerated:
            return {"chosen": "none", "reason": reasons}
        return {"chosen": "in part", "reason": f"{', '.join(self.accelerated)}, {checked}; {reasons}"}

    def undo(self) -> None:
        """Make the model plain again; training can go on at once, with the same bits."""
        self._undo()

    def __str__(self) -> str:
        return "\n".join([*map(str, self.parts), f"checked bit by bit in {self.check_seconds:.2f} s"])
