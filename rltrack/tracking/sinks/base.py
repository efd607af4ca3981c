"""What a sink is: somewhere a run's numbers are delivered to, over and over, without doubling any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rltrack.errors import RltrackError

if TYPE_CHECKING:
    from rltrack.tracking.report import RunReport


class Point(NamedTuple):
    """Values that were measured together.

    Attributes:
        values: Numbers by key.
        step: Env steps; for samples of the machine, seconds since the run began.
        time: Unix seconds, as recorded.
        excluded: Keys that their writer keeps from a sink, by the sink's name.
    """

    values: Mapping[str, float]
    step: int
    time: float
    excluded: Mapping[str, Sequence[str]] = {}

    def values_for(self, sink: str) -> Mapping[str, float]:
        """Return the values that this sink gets."""
        kept_away = self.excluded.get(sink)
        return {key: value for key, value in self.values.items() if key not in kept_away} if kept_away else self.values


class Refused(NamedTuple):
    """What a sink will never take.

    Attributes:
        what: The value, with its key, step and time.
        reason: Why, in the sink's words.
    """

    what: Mapping[str, Any]
    reason: str


class NotDelivered(RltrackError):
    """A sink takes nothing just now; what it was given stays where it is, and is given again.

    Args:
        message: What was asked, what was answered, what to do.
        needs_a_person: Whether somebody must do something first; if not, it passes.
    """

    def __init__(self, message: str, *, needs_a_person: bool = False) -> None:
        super().__init__(message)
        self.needs_a_person = needs_a_person


class Sink(Protocol):
    """Where numbers go. What it must remember from one process to the next is in `state`, plain data."""

    state: dict[str, Any]

    def open(self, report: RunReport) -> None:
        """Find or make the run's place there.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def write(self, points: Sequence[Point]) -> list[Refused]:
        """Take points; the same ones again change nothing.

        Returns:
            What it will never take.

        Raises:
            NotDelivered: If it takes none now; all of them come again.
        """

    def refresh(self, report: RunReport) -> None:
        """Show how the run stands now.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def finish(self, report: RunReport) -> None:
        """Show how the run ended; it may go on later all the same.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def add_video(self, report: RunReport, video: Path, gif: Path) -> None:
        """Add a video of the policy, after `finish`: the file, and a small animated picture of it.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def close(self) -> None:
        """Release everything; harmless if called twice."""
