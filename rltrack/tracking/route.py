"""The way from a run's files to one sink: what is next, what went wrong, when to try again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rltrack.backoff import Backoff
from rltrack.journal import Record, encode_record, read_from
from rltrack.runs import RunDirectory
from rltrack.tracking.bookmark import Problem, SinkBookmark
from rltrack.tracking.metrics import INTERVAL_KEYS, evaluation_metrics
from rltrack.tracking.report import RunReport
from rltrack.tracking.sinks.base import NotDelivered, Point, Refused, Sink

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_PERSON_WAIT = 30.0


class Route:
    """Carries a run to one sink.

    Args:
        name: The sink's name.
        run: The run.
        sink: Where to.
        bookmark: How far it is; kept up to date.
        save: Writes the bookmark to disk.
        notify: Called with a message about each problem.
    """

    def __init__(
        self,
        name: str,
        run: RunDirectory,
        sink: Sink,
        bookmark: SinkBookmark,
        save: Callable[[], None],
        notify: Callable[[str], None],
    ) -> None:
        self.name = name
        self.run, self.sink, self.bookmark = run, sink, bookmark
        self._save, self._notify = save, notify
        self._is_open = False
        self._backoff = Backoff(_FIRST_WAIT, _LONGEST_WAIT)

    def has_all(self, journal_end: int, resources_end: int) -> bool:
        """Whether the sink has everything up to these positions."""
        return self.bookmark.journal >= journal_end and self.bookmark.resources >= resources_end

    def deliver(self, report: RunReport, journal_end: int, resources_end: int) -> None:
        """Deliver what is new up to these positions, unless a failure was a moment ago."""
        bookmark = self.bookmark
        if bookmark.journal > journal_end:  # the journal was fetched from a copy that had less
            bookmark.journal = 0
        if bookmark.resources > resources_end:
            bookmark.resources = 0
        if self.has_all(journal_end, resources_end) and (self._is_open or bookmark.finished_at == journal_end):
            return

        def carry() -> None:
            self._open(report)
            bookmark.journal = self._carry(self.run.journal_file, bookmark.journal, journal_end, "journal")
            bookmark.resources = self._carry(self.run.resources_file, bookmark.resources, resources_end, "resources")

        self._attempt(carry)

    def refresh(self, report: RunReport) -> None:
        """Show how the run stands, if the sink answers."""
        if self._is_open:
            self._attempt(lambda: self.sink.refresh(report))

    def finish(self, report: RunReport, journal_end: int) -> None:
        """Show how the run ended, once it has everything up to this position."""

        def end() -> None:
            self._open(report)
            self.sink.finish(report)
            self.bookmark.finished_at = journal_end
            self._is_open = False

        if self.bookmark.finished_at != journal_end:
            self._attempt(end)

    def finish_removed(self, report: RunReport) -> None:
        """Show that the run's folder is gone; nothing can be saved there any more."""
        if self.sink.dies_with_the_run or not self.run.root.is_dir():
            return
        try:
            if not self._is_open:
                self.sink.open(report)
            self.sink.finish(report)
        except (NotDelivered, OSError) as error:
            self._notify(f"{self.name}: that the run failed is not shown there: {error}")

    def add_video(self, report: RunReport, video: Path, gif: Path) -> None:
        """Add a video to what is delivered."""
        self._attempt(lambda: self.sink.add_video(report, video, gif))

    @property
    def needs_a_person(self) -> bool:
        """Whether delivery waits for an action of the user."""
        return self.bookmark.problem is not None and self.bookmark.problem.kind == "person"

    def close(self) -> None:
        """Release the sink."""
        self.sink.close()

    def _open(self, report: RunReport) -> None:
        if not self._is_open:
            self.sink.open(report)
            self._is_open = True
            self._save()

    def _carry(self, path: Path, begin: int, end: int, name: str) -> int:
        while begin < end:
            records, position = read_from(path, begin, end)
            if position == begin:
                return begin
            points = [point for record in records if (point := point_of(record)) is not None]
            refused = self.sink.write(points) if points else []
            refused += [
                Refused({"text": record["text"]}, "not a journal record")
                for record in records
                if record["kind"] == "damaged"
            ]
            self._set_aside(refused)
            begin = position
            setattr(self.bookmark, name, begin)
            self._save()
        return begin

    def _set_aside(self, refused: list[Refused]) -> None:
        for item in refused:
            line = {"time": time.time(), "kind": "undelivered", "sink": self.name, **item.what, "reason": item.reason}
            with open(self.run.set_aside_file, "ab", buffering=0) as file:
                file.write(encode_record(line))
        self.bookmark.set_aside += len(refused)

    def _attempt(self, action: Callable[[], None]) -> None:
        if not self._backoff.is_due():
            return
        try:
            action()
        except Exception as error:  # whatever a third-party sink raises: the others continue
            self._failed(error)
            return
        if self.bookmark.problem is not None:
            self._notify(f"{self.name}: answers again")
        self._backoff.succeeded()
        self.bookmark.problem = None
        self._save()

    def _failed(self, error: Exception) -> None:
        person = isinstance(error, NotDelivered) and error.needs_a_person
        self._backoff.failed(wait=_PERSON_WAIT if person else None)
        self._is_open = False
        self.sink.close()
        before = self.bookmark.problem
        is_known = isinstance(error, NotDelivered | OSError)
        message = str(error) if is_known else f"{type(error).__name__}: {error}"
        if before is None or before.message != message:
            self._notify(f"{self.name}: {message}")
        kind = "person" if person else "passing"
        self.bookmark.problem = Problem(kind, message, before.since if before else time.time())
        self._save()


def point_of(record: Record) -> Point | None:
    """Return the numbers of a record; None for one that has none to draw."""
    kind: Any = record["kind"]
    if kind == "evaluation":
        return Point(evaluation_metrics(record), record["step"], record["time"], {"mlflow": INTERVAL_KEYS})
    if kind in ("metrics", "resources"):
        excluded: Mapping[str, list[str]] = record.get("excluded") or {}
        return Point(record["values"], record["step"], record["time"], excluded)
    return None
