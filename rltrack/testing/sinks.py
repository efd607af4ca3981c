"""The suite of a sink: a process that dies after a write, a resumed run, a lost bookmark, NaN and infinities."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rltrack.journal import Journal
from rltrack.runs import Root
from rltrack.tracking.report import RunReport
from rltrack.tracking.sinks.base import Point, Sink

Row = tuple[str, int, float]
"""Key, step, value."""

POINTS: Sequence[Point] = [
    *(
        Point({"train/loss": 0.1 * step, "rollout/n": float(step % 3), "odd key=1": 1.0}, step, 1_700_000_000.5 + step)
        for step in range(1, 41)
    ),
    Point({"odd/nan": math.nan, "odd/up": math.inf, "odd/down": -math.inf, "odd/big": 2.0**60}, 5, 1_700_000_100.0),
    Point({"late/step": 7.0}, 30, 1_700_000_101.0),
    Point({"late/step": 8.0}, 10, 1_700_000_102.0),
]
"""What is written: curves, numbers that are hard to keep, and steps that go back."""


def new_report(root: Path, name: str = "contract") -> RunReport:
    """Return the report of a new run under `root` whose journal holds the beginning only."""
    run = Root(root).create(None, name)
    journal = Journal(run.journal_file)
    journal.note("configuration", run_id=run.name, identity={"seed": 0}, agent={"algorithm": "None"})
    journal.close()
    run.write_config({"seed": 3, "tracking": {"tags": {"team": "blue"}}})
    return RunReport(run, {})


class SinkContract(ABC):
    """What every sink keeps to. Subclass it in a test module, under a name that begins with ``Test``.

    Attributes:
        name: What SB3's ``exclude`` calls the sink; None if it makes no difference.
        keeps_odd_numbers: Whether it keeps NaN and infinities.
    """

    name: str | None = None
    keeps_odd_numbers = True

    @abstractmethod
    def make(self, report: RunReport, state: dict[str, Any]) -> Sink:
        """Return the sink of a run, with the state that the process before left."""

    @abstractmethod
    def rows(self, report: RunReport, state: dict[str, Any]) -> Sequence[Row]:
        """Return all that the sink holds of a run, in any order; what is there twice is there twice."""

    def make_report(self, folder: Path) -> RunReport:
        """Return the report of a new run."""
        return new_report(folder)

    def points(self) -> list[Point]:
        """Return what is written, with a value that is kept from this sink."""
        if self.name is None:
            return list(POINTS)
        hidden = Point({"kept/away": 1.0, "kept/here": 2.0}, 50, 1_700_000_103.0, {self.name: ["kept/away"]})
        return [*POINTS, hidden]

    def expected(self) -> set[str]:
        """Return each value that is to be there, once: key, step and value as text, since NaN equals nothing."""
        return {
            _as_text(key, point.step, value)
            for point in self.points()
            for key, value in point.values_for(self.name or "").items()
            if self.keeps_odd_numbers or math.isfinite(value)
        }

    def check_rows(self, report: RunReport, state: dict[str, Any]) -> None:
        """Hold what is there against what was written."""
        found = sorted(_as_text(key, step, value) for key, step, value in self.rows(report, state))
        assert found == sorted(self.expected()), "each value once, with its own key, step and number"

    def test_each_value_is_there_once_whatever_dies(self, tmp_path: Path) -> None:
        """The process dies after a write that its saved state does not know of; the next one gets other portions."""
        report, points = self.make_report(tmp_path), self.points()
        state: dict[str, Any] = {}
        sink = self.make(report, state)
        sink.open(report)
        assert sink.write(points[:10]) == []
        kept = json.dumps(state)
        sink.write(points[10:20])
        sink.write(points[20:25])
        sink.close()

        state = json.loads(kept)
        sink = self.make(report, state)
        assert not sink.is_lost(report)
        sink.open(report)
        sink.write(points[10:])
        sink.finish(report)
        sink.close()
        sink.close()
        self.check_rows(report, state)

    def test_it_goes_on_after_an_end(self, tmp_path: Path) -> None:
        """A run that was stopped is resumed, and delivered by another process."""
        report, points = self.make_report(tmp_path), self.points()
        state: dict[str, Any] = {}
        for part in (points[:15], points[15:]):
            sink = self.make(report, state)
            assert not sink.is_lost(report)
            sink.open(report)
            sink.write(part)
            sink.refresh(report)
            sink.finish(report)
            sink.close()
            state = json.loads(json.dumps(state))
        self.check_rows(report, state)

    def test_nothing_is_lost_where_there_is_no_state(self, tmp_path: Path) -> None:
        """The bookmark is gone: everything is delivered again, and what is there already does not count twice."""
        report, points = self.make_report(tmp_path), self.points()
        state: dict[str, Any] = {}
        for portion in (7, 11):
            state = {}
            sink = self.make(report, state)
            assert not sink.is_lost(report)
            sink.open(report)
            for begin in range(0, len(points), portion):
                sink.write(points[begin : begin + portion])
            sink.close()
        self.check_rows(report, state)


def _as_text(key: str, step: int, value: float) -> str:
    return f"{key} {step} {value:.6g}"
