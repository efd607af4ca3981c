"""The way to a sink: positions, failures, what is set aside, and going on from the bookmark."""

from __future__ import annotations

import csv

import pytest

from rltrack.backoff import Backoff
from rltrack.journal import Journal, read_journal
from rltrack.runs import Root
from rltrack.tracking import route as routes
from rltrack.tracking.bookmark import Bookmark, SinkBookmark, forget_delivery, is_delivered, read_bookmark
from rltrack.tracking.report import RunReport
from rltrack.tracking.route import Route
from rltrack.tracking.sinks.base import NotDelivered, Refused, Sink


class MemorySink(Sink):
    """Keeps what it gets, and fails when told to."""

    def __init__(self):
        self.state = {}
        self.points, self.finished, self.opened = [], 0, 0
        self.fails: NotDelivered | OSError | None = None
        self.refuses: set[str] = set()

    def open(self, report):
        self._may_fail()
        self.opened += 1

    def write(self, points):
        self._may_fail()
        self.points += [point for point in points if not self.refuses & point.values.keys()]
        return [
            Refused({"key": key, "step": point.step}, "not this one")
            for point in points
            for key in self.refuses & point.values.keys()
        ]

    def refresh(self, report):
        self._may_fail()

    def finish(self, report):
        self._may_fail()
        self.finished += 1

    def add_video(self, report, video, gif):
        pass

    def close(self):
        pass

    def _may_fail(self):
        if self.fails is not None:
            raise self.fails


@pytest.fixture
def run():
    run = Root().create("way", "")
    journal = Journal(run.journal_file)
    journal.note("configuration", run_id="way", identity={}, agent={})
    for step in range(1, 6):
        journal.write("metrics", step, values={"a": float(step), "b": -float(step)})
        journal.write("episodes", step, returns=[1.0], lengths=[2], steps=[step])
    journal.write(
        "evaluation", 5, returns=[1.0, 3.0], lengths=[4, 6], mean=2.0, std=1.0, median=2.0, iqm=2.0, interval=[1, 3]
    )
    journal.close()
    run.write_config({})
    return run


@pytest.fixture
def way(run, monkeypatch):
    monkeypatch.setattr(routes, "_FIRST_WAIT", 0.0)
    monkeypatch.setattr(routes, "_PERSON_WAIT", 0.0)
    sink, bookmark, said = MemorySink(), SinkBookmark(), []
    return Route("memory", run, sink, bookmark, lambda: None, said.append), sink, bookmark, said


def size(run):
    return run.journal_file.stat().st_size


def test_numbers_arrive_in_order_and_once(run, way):
    route, sink, bookmark, _ = way
    report = RunReport(run, {})
    route.deliver(report, size(run), 0)
    route.deliver(report, size(run), 0)
    assert [point.step for point in sink.points] == [1, 2, 3, 4, 5, 5]
    assert sink.points[-1].values["eval/mean_reward"] == 2.0
    assert sink.points[-1].values["eval/mean_ep_length"] == 5.0
    assert (sink.opened, bookmark.journal) == (1, size(run))


@pytest.mark.usefixtures("plots")
def test_mlflow_has_the_bounds_of_intervals_in_a_file_and_not_as_charts(run, way):
    route, sink, _, _ = way
    report = RunReport(run, {})
    report.catch_up(size(run), 0)
    route.deliver(report, size(run), 0)
    point = sink.points[-1]
    assert point.values.keys() - point.values_for("mlflow").keys() == {"eval/ci_low", "eval/ci_high"}
    assert (point.values_for("tensorboard")["eval/ci_low"], point.values["eval/ci_high"]) == (1, 3)
    report.draw()
    [listed] = [path for path, _ in report.files() if path.name == "evaluations.csv"]
    with open(listed) as file:
        [row] = csv.DictReader(file)
    assert {key: float(value) for key, value in row.items() if key != "time"} == {
        "step": 5,
        "eval/mean_reward": 2,
        "eval/ci_low": 1,
        "eval/ci_high": 3,
    }


def test_nothing_beyond_the_safe_end_is_delivered(run, way):
    route, sink, bookmark, _ = way
    lines = run.journal_file.read_bytes().splitlines(keepends=True)
    end = sum(len(line) for line in lines[:4]) + 3  # in the middle of a record
    route.deliver(RunReport(run, {}), end, 0)
    assert [point.step for point in sink.points] == [1, 2]
    assert bookmark.journal == sum(len(line) for line in lines[:4])


@pytest.mark.parametrize(
    "error", [NotDelivered("down"), NotDelivered("who are you", needs_a_person=True), OSError("disk")]
)
def test_a_failure_is_reported_once_kept_and_forgotten(run, way, error):
    route, sink, bookmark, said = way
    report = RunReport(run, {})
    sink.fails = error
    for _ in range(3):
        route.deliver(report, size(run), 0)
        route.finish(report, size(run))
    assert said == [f"memory: {error}"]
    assert bookmark.problem.message == str(error)
    assert bookmark.problem.kind == ("person" if getattr(error, "needs_a_person", False) else "passing")
    assert route.needs_a_person is (bookmark.problem.kind == "person")
    assert bookmark.finished_at is None
    sink.fails = None
    route.deliver(report, size(run), 0)
    route.finish(report, size(run))
    assert bookmark.problem is None
    assert said[-1] == "memory: answers again"
    assert (len(sink.points), sink.finished, bookmark.finished_at) == (6, 1, size(run))


def test_after_a_failure_it_waits(run, way):
    route, sink, _, _ = way
    route._backoff = Backoff(3600.0, 3600.0)
    sink.fails = NotDelivered("down")
    route.deliver(RunReport(run, {}), size(run), 0)
    sink.fails = None
    route.deliver(RunReport(run, {}), size(run), 0)
    assert sink.points == []


def test_a_sink_that_raises_whatever_it_likes_is_a_problem_that_passes(run, way):
    route, sink, bookmark, _ = way
    sink.fails = KeyError("its own fault")
    route.deliver(RunReport(run, {}), size(run), 0)
    assert (bookmark.problem.kind, bookmark.problem.message) == ("passing", "KeyError: 'its own fault'")
    sink.fails = None
    route.deliver(RunReport(run, {}), size(run), 0)
    assert bookmark.problem is None
    assert bookmark.journal == size(run)


def test_sinks_that_are_no_longer_asked_for_are_kept_and_do_not_count(run):
    bookmark = Bookmark("way")
    bookmark.mlflow.journal = 7
    bookmark.follow(["tensorboard", "own:Sink"])
    for sink in bookmark.sinks.values():
        sink.finished_at = 9
    assert bookmark.is_complete(9)
    bookmark.save(run.bookmark_file)
    again = read_bookmark(run)
    assert again == bookmark
    assert (list(again.sinks), again.mlflow.journal) == (["tensorboard", "own:Sink"], 7)
    again.follow(["mlflow"])
    assert again.sinks["mlflow"].journal == 7


def test_what_is_refused_for_good_is_set_aside_with_its_reason(run, way):
    route, sink, bookmark, _ = way
    with open(run.journal_file, "ab") as file:
        file.write(b"this is no record\n")
    sink.refuses = {"eval/mean_reward"}
    route.deliver(RunReport(run, {}), size(run), 0)
    assert bookmark.set_aside == 2
    assert bookmark.journal == size(run)
    aside = list(read_journal(run.set_aside_file))
    assert (aside[0]["key"], aside[0]["step"], aside[0]["reason"]) == ("eval/mean_reward", 5, "not this one")
    assert (aside[1]["text"], aside[1]["reason"]) == ("this is no record", "not a journal record")


def test_a_journal_that_became_shorter_is_delivered_again(run, way):
    route, sink, bookmark, _ = way
    bookmark.journal = 10**9
    route.deliver(RunReport(run, {}), size(run), 0)
    assert len(sink.points) == 6


def test_finishing_again_changes_nothing_until_there_is_more(run, way):
    route, sink, _, _ = way
    report = RunReport(run, {})
    for _ in range(2):
        route.deliver(report, size(run), 0)
        route.finish(report, size(run))
    assert (sink.opened, sink.finished) == (1, 1)
    journal = Journal(run.journal_file)
    journal.write("metrics", 9, values={"a": 9.0})
    journal.close()
    route.deliver(report, size(run), 0)
    route.finish(report, size(run))
    assert (sink.opened, sink.finished) == (2, 2)


def test_bookmarks_survive_and_bad_ones_do_not_count(run):
    bookmark = Bookmark("way")
    bookmark.mlflow.journal = 7
    bookmark.mlflow.state["run_id"] = "abc"
    bookmark.save(run.bookmark_file)
    assert read_bookmark(run) == bookmark
    assert not is_delivered(run)
    bookmark.mlflow.finished_at = bookmark.tensorboard.finished_at = size(run)
    bookmark.save(run.bookmark_file)
    assert is_delivered(run)
    forget_delivery(run)
    assert not is_delivered(run)
    again = read_bookmark(run)
    assert "run_id" not in again.mlflow.state
    assert again.mlflow.state["tag"].startswith("way-")
    assert Bookmark.load(run.bookmark_file, "another run") == Bookmark("another run")
    for content in ("", "{", '{"format": 99}', "[]"):
        run.bookmark_file.write_text(content)
        assert read_bookmark(run) == Bookmark("way")


@pytest.mark.slow
def test_the_report_is_bounded_and_the_curve_is_kept(run):
    report = RunReport(run, {"machine.host": "here"})
    journal = Journal(run.journal_file)
    for step in range(6, 20_000):
        journal.write("metrics", step, values={"train/loss": float(step)})
        journal.write("episodes", step, returns=[float(step)], lengths=[1], steps=[step])
    journal.close()
    assert report.catch_up(size(run), 0)
    assert not report.catch_up(size(run), 0)
    series = report.metrics.history("train/loss")
    assert 2000 <= len(series.steps) <= 4000
    assert len(report.metrics.episodes) <= 4000
    assert report.metrics.latest("train/loss") == 19_999.0
    assert report.metrics.running_returns.values[-1] == pytest.approx(sum(range(19_900, 20_000)) / 100, abs=20)
    assert "2" in report.description()
    assert report.params()["machine.host"] == "here"
    assert report.start_time == run.configuration_record()["time"]
