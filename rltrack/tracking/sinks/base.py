"""The interface of a sink: a destination that receives each number of a run exactly once."""

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
        excluded: Keys that are not sent to a sink, by the sink's name.
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
    """A value that a sink will never accept.

    Attributes:
        what: The value, with its key, step and time.
        reason: Why, in the sink's words.
    """

    what: Mapping[str, Any]
    reason: str


class NotDelivered(RltrackError):
    """A sink accepts nothing now; delivery of the same points is retried.

    Args:
        message: What was asked, what was answered, what to do.
        needs_a_person: Whether the user must act first; if not, the error is temporary.
    """

    def __init__(self, message: str, *, needs_a_person: bool = False) -> None:
        super().__init__(message)
        self.needs_a_person = needs_a_person


class Sink(ABC):
    """Base class of destinations. A sink implements `open` and `write`; the other methods have defaults.

    In the process that delivers, for each run::

        sink = Class.for_run(run, state)
        if sink.is_lost(report): everything is delivered again, from an empty state
        during the run:
            sink.open(report)                   once, and again after each failure
            sink.write(points)                  what is new; after it returns, its state is saved
            sink.refresh(report)                about once a minute
        sink.finish(report); sink.add_video(…); sink.close()

    The process may be killed at any moment, and another continues from the last saved state: points written after that are
    written again, possibly in other batches, and must not be stored twice. Either the destination drops what it already has, or
    `open` deletes what the state does not list.

    Attributes:
        state: What the next process must know: plain data that JSON can store. Change it in place.
    """

    dies_with_the_run: ClassVar[bool] = False
    """Whether the destination is in the run's folder and is deleted with it."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    @classmethod
    def for_run(cls, run: RunDirectory, state: dict[str, Any]) -> Self:
        """Make the sink of a run, without contacting the destination.

        Args:
            run: The run.
            state: As the previous process saved it; empty at first.
        """
        return cls(state)

    def is_lost(self, report: RunReport) -> bool:
        """Return whether what `state` lists no longer exists, so that everything must be delivered again."""
        return False

    @abstractmethod
    def open(self, report: RunReport) -> None:
        """Find or create the run at the destination, and delete what `state` does not list.

        Raises:
            NotDelivered: If that is not possible now.
        """

    @abstractmethod
    def write(self, points: Sequence[Point]) -> list[Refused]:
        """Write points; `Point.values_for` returns those values of a point that this sink gets.

        Returns:
            The values that it will never accept.

        Raises:
            NotDelivered: If it accepts none now; all of them are written again later.
        """

    def prepare_end(self) -> None:  # noqa: B027
        """Import what `finish` needs, during training, when nothing waits for it."""

    def refresh(self, report: RunReport) -> None:  # noqa: B027
        """Update what is shown of the running run.

        Raises:
            NotDelivered: If that is not possible now.
        """

    def finish(self, report: RunReport) -> None:  # noqa: B027
        """Store how the run ended; it may be resumed later.

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
    """Stands for a sink that cannot be made: it accepts nothing until the user has acted; other sinks continue.

    Args:
        reason: Why, and what to do.
        state: State of the sink, which is not changed.
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
