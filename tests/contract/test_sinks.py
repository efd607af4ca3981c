"""What every sink keeps to: the same points again change nothing, whatever died in between; and MLflow's two ways are one."""

from __future__ import annotations

import json
import math
import sqlite3

import pytest

from rltrack.runs import Root
from rltrack.tracking.destination import Destination
from rltrack.tracking.journal import Journal
from rltrack.tracking.report import RunReport
from rltrack.tracking.sinks.base import Point
from rltrack.tracking.sinks.mlflow import MlflowSink
from rltrack.tracking.sinks.tensorboard import TensorBoardSink
from tests.support.servers import tensorboard_scalars

POINTS = [
    Point({"train/loss": 0.1 * step, "rollout/n": float(step % 3), "bad key=1": 1.0}, step, 1_700_000_000.5 + step)
    for step in range(1, 41)
] + [
    Point({"odd/nan": math.nan, "odd/up": math.inf, "odd/down": -math.inf, "odd/big": 2.0**60}, 5, 1_700_000_100.0),
    Point({"late/step": 7.0}, 30, 1_700_000_101.0),
    Point({"late/step": 8.0}, 10, 1_700_000_102.0),
    Point(
        {"kept/away": 1.0, "kept/here": 2.0},
        50,
        1_700_000_103.0,
        {"mlflow": ["kept/away"], "tensorboard": ["kept/away"]},
    ),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for all tests here; making it takes seconds."""
    from rltrack.tracking.sinks.embedded import ensure_database

    root = tmp_path_factory.mktemp("root")
    ensure_database(root)
    return root


@pytest.fixture
def report(database, request):
    return new_report(database, request.node.name)


def new_report(root, base):
    run = Root(root).create(None, base)
    journal = Journal(run.journal_file)
    journal.note("configuration", run_id=run.name, identity={"seed": 0}, agent={"algorithm": "None"})
    journal.close()
    run.write_config({"seed": 3, "tracking": {"tags": {"team": "blue"}}})
    return RunReport(run, {})


def make(kind, report, state):
    if kind == "tensorboard":
        return TensorBoardSink(state)
    if kind == "mlflow":
        return MlflowSink(Destination(), report.run.root, state)
    return MlflowSink(Destination(tracking_uri=f"sqlite:///{report.run.root / 'mlflow.db'}"), report.run.root, state)


def held(kind, report, state):
    """All that the sink holds: sorted rows of key, step, value."""
    if kind == "tensorboard":
        return sorted(
            (key, step, value) for key, rows in tensorboard_scalars(report.run).items() for step, _, value in rows
        )
    with sqlite3.connect(report.run.root / "mlflow.db") as connection:
        return sorted(
            connection.execute(
                "SELECT key, step, value, is_nan, timestamp FROM metrics WHERE run_uuid = ?", (state["run_id"],)
            ).fetchall()
        )


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "mlflow-by-address"])
def test_points_are_there_once_whatever_dies(kind, report):
    state: dict = {}
    sink = make(kind, report, state)
    sink.open(report)
    assert sink.write(POINTS[:10]) == []
    kept = json.dumps(state)
    sink.write(POINTS[10:20])  # dies here: the bookmark does not know of these
    sink.close()

    state = json.loads(kept)
    sink = make(kind, report, state)
    assert not sink.is_lost(report)
    sink.open(report)
    sink.write(POINTS[10:])
    sink.finish(report)
    sink.close()
    rows = held(kind, report, state)
    expected = sum(len(point.values) for point in POINTS) - 1
    assert len(rows) == expected - (3 if kind == "tensorboard" else 0), "TensorBoard draws no NaN and no infinities"
    assert len({row[:2] for row in rows}) == len(rows)
    assert not any("away" in row[0] for row in rows)


def test_the_fast_way_into_the_own_database_equals_mlflows_own(report, database):
    slow_report = new_report(database, "slow")
    fast, slow = make("mlflow", report, {}), make("mlflow-by-address", slow_report, {})
    for sink, own in ((fast, report), (slow, slow_report)):
        sink.open(own)
        for begin in range(0, len(POINTS), 9):
            sink.write(POINTS[begin : begin + 9])
        sink.write(POINTS[:20])
    assert fast._fast is not None
    assert slow._fast is None
    assert held("mlflow", report, fast.state) == held("mlflow", slow_report, slow.state)
    with sqlite3.connect(database / "mlflow.db") as connection:
        latest = [
            sorted(
                connection.execute(
                    "SELECT key, value, step, timestamp, is_nan FROM latest_metrics WHERE run_uuid = ?", (sink.run_id,)
                ).fetchall()
            )
            for sink in (fast, slow)
        ]
    assert latest[0] == latest[1]
    assert ("late/step", 7.0, 30, 1_700_000_101_000, 0) in latest[0]


def test_what_mlflow_is_told_of_a_run(report):
    from mlflow.tracking import MlflowClient

    sink = make("mlflow", report, {})
    sink.open(report)
    sink.open(report)
    sink.finish(report)
    client = MlflowClient(sink.state["tracking_uri"])
    found = client.get_run(sink.run_id)
    assert found.data.params["seed"] == "3"
    assert found.data.tags["team"] == "blue"
    assert found.info.experiment_id != "0"
    assert found.info.status == "KILLED", "its process ended without a word"
    assert "interrupted" in found.data.tags["mlflow.note.content"]
    assert len(client.search_runs([found.info.experiment_id], f"tags.`rltrack.run_id` = '{report.run_id}'")) == 1


def test_event_files_that_are_gone_or_cut_are_written_anew(report):
    state: dict = {}
    sink = make("tensorboard", report, state)
    sink.open(report)
    sink.write(POINTS[:10])
    sink.close()
    (path,) = report.run.tensorboard.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert TensorBoardSink(state).is_lost(report)
    path.unlink()
    assert TensorBoardSink(state).is_lost(report)
    assert not TensorBoardSink({}).is_lost(report)
