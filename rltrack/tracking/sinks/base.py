"""What a sink is: somewhere a run's numbers are delivered to, over and over, without doubling any."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from rltrack.errors import RltrackError

if TYPE_CHECKING:
    from rltrack.runs import RunDirectory
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
        needs_a_person: Whether the user must act first; if not, it passes.
    """

    def __init__(self, message: str, *, needs_a_person: bool = False) -> None:
        super().__init__(message)
        self.needs_a_person = needs_a_person


class Sink(ABC):
    """Where numbers go. A sink defines `open` and `write`; the rest has defaults.

    In the process that delivers, for each run::

        sink = Class.for_run(run, state)
        if sink.is_lost(report): everything is delivered again, from an empty state
        during the run:
            sink.open(report)                   once, and again after each failure
            sink.write(points)                  what is new; after it returns, its state is saved
            sink.refresh(report)                about once a minute
        sink.finish(report); sink.add_video(…); sink.close()

    The process may be killed at any moment, and another continues with the state that was saved last: what was written after that
    is given again, in other portions, and must not be there twice. Either the place drops what it has already, or the state says
    how far it was, and `open` removes what lies behind that.

    Attributes:
        state: What must be remembered from one process to the next: plain data, as JSON keeps it. Change it in place.
    """

    dies_with_the_run: ClassVar[bool] = False
    """Whether it lies in the run's folder, so that nothing can be shown there once the folder was removed."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    @classmethod
    def for_run(cls, run: RunDirectory, state: dict[str, Any]) -> Self:
        """Make the sink of a run, without reaching for anything.

        Args:
            run: The run.
            state: As the process before left it; empty at first.
        """
        return cls(state)

    def is_lost(self, report: RunReport) -> bool:
        """Whether what `state` speaks of is gone or is another place, so that everything must be delivered again."""
        return False

    @abstractmethod
    def open(self, report: RunReport) -> None:
        """Find or make the run's place there, and take away what `state` does not know of.

        Raises:
            NotDelivered: If that is not possible now.
        """

    @abstractmethod
    def write(self, points: Sequence[Point]) -> list[Refused]:
        """Take points, as `Point.values_for` the sink's name has them.

        Returns:
            What it will never take.

        Raises:
            NotDelivered: If it takes none now; all of them come again.
        """

    def prepare_end(self) -> None:  # noqa: B027
        """Import what `finish` needs during training, when nothing waits for it."""

    def refresh(self, report: RunReport) -> None:  # noqa: B027
        """Show how the run stands now.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def finish(self, report: RunReport) -> None:  # noqa: B027
        """Show how the run ended; it may be resumed later.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def add_video(self, report: RunReport, video: Path, gif: Path) -> None:  # noqa: B027
        """Add a video of the policy, after `finish`: the file, and a small animated picture of it.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def close(self) -> None:  # noqa: B027
        """Release everything; harmless if called twice."""


class Unusable(Sink):
    """Stands for a sink that cannot be made: it takes nothing until the user has acted, and the others continue.

    Args:
        reason: Why, and what to do.
        state: Of the sink; kept as it is.
    """

    def __init__(self, reason: str, state: dict[str, Any]) -> None:
        super().__init__(state)
        self._reason = reason

    def open(self, report: RunReport) -> None:
        """Say why."""
        raise NotDelivered(self._reason, needs_a_person=True)

    def write(self, points: Sequence[Point]) -> list[Refused]:
        """Say why."""
        raise NotDelivered(self._reason, needs_a_person=True)
