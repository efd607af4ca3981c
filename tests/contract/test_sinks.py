"""What every sink keeps to: the same points again change nothing, whatever died in between; and MLflow's two ways are one."""

from __future__ import annotations

import base64
import json
import math
import re
import sqlite3
import sys
import uuid
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rltrack.journal.names import mlflow_name
from rltrack.testing import POINTS, SinkContract, new_report
from rltrack.tracking.destination import Destination
from rltrack.tracking.sinks import load_sink
from rltrack.tracking.sinks.mlflow import MlflowSink
from rltrack.tracking.sinks.mlflow_view import PAGE, VIEW_TAG
from rltrack.tracking.sinks.tensorboard import TensorBoardSink
from tests.support.servers import tensorboard_scalars

LIMITS = {sys.float_info.max: math.inf, -sys.float_info.max: -math.inf}


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


class OfOurs(SinkContract):
    kind = ""

    @pytest.fixture(autouse=True)
    def in_one_database(self, database):
        self.root = database

    def make_report(self, folder):
        return new_report(self.root, uuid.uuid4().hex)

    def make(self, report, state):
        return make(self.kind, report, state)

    def rows(self, report, state):
        return [(key, step, number) for key, step, number, *_ in held(self.kind, report, state)]


class TestTensorBoard(OfOurs):
    kind = name = "tensorboard"
    keeps_odd_numbers = False


class TestMlflow(OfOurs):
    kind = name = "mlflow"

    def rows(self, report, state):
        """As MLflow keeps NaN, infinities and odd names."""
        return [
            (key.replace(mlflow_name("odd key=1"), "odd key=1"), step, math.nan if is_nan else LIMITS.get(value, value))
            for key, step, value, is_nan, _ in held(self.kind, report, state)
        ]


class TestMlflowByAddress(TestMlflow):
    kind = "mlflow-by-address"


class TestParquet(SinkContract):
    """The example of the documentation, as its author would test it."""

    name = "parquet"

    def make(self, report, state):
        return load_sink("examples.parquet_sink:ParquetSink").for_run(report.run, state)

    def rows(self, report, state):
        table = pq.read_table(report.run.path / "parquet").to_pydict()
        return list(zip(table["key"], table["step"], table["value"], strict=True))


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


def test_what_mlflow_receives_of_a_run(report):
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
    assert found.info.status == "KILLED", "its process died"
    assert "interrupted" in found.data.tags["mlflow.note.content"]
    assert len(client.search_runs([found.info.experiment_id], f"tags.`rltrack.run_id` = '{report.run_id}'")) == 1


def test_a_new_experiment_has_a_prepared_view_which_is_never_written_again(report):
    from mlflow.tracking import MlflowClient

    sink = make("mlflow", report, {})
    sink.open(report)
    client, experiment = MlflowClient(sink.state["tracking_uri"]), sink.state["experiment_id"]
    kind, _, state = client.get_experiment(experiment).tags[VIEW_TAG].partition(";")
    assert kind == "deflate"
    found = json.loads(zlib.decompress(base64.b64decode(state)))
    assert found["selectedColumns"][0] == "metrics.`eval/mean_reward`"
    assert {
        column.partition("`")[2].strip("`") for column in found["selectedColumns"] if column.startswith("tags")
    } <= {*report.tags()}
    client.set_experiment_tag(experiment, VIEW_TAG, "a person's")
    make("mlflow", report, {}).open(report)
    assert client.get_experiment(experiment).tags[VIEW_TAG] == "a person's"
    client.set_experiment_tag(experiment, VIEW_TAG, f"{kind};{state}")


def test_the_prepared_view_has_the_fields_of_the_installed_page():
    """A page that reads other fields would show an incomplete view; both ends of the supported range run this."""
    mlflow = pytest.importorskip("mlflow.server")
    scripts = list((Path(mlflow.__file__).parent / "js" / "build" / "static" / "js").glob("*.js"))
    if not scripts:
        pytest.skip("MLflow's page is not installed")
    fields = [
        json.loads(match)
        for path in scripts
        for match in re.findall(rb'\["selectedColumns"[^\]]*\]', path.read_bytes())
    ]
    made_by_the_page = {"compareRunCharts", "compareRunSections"}
    assert any(set(found) - made_by_the_page == PAGE.keys() for found in fields), fields
    assert any(b"mlflow.sharedViewState." in path.read_bytes() for path in scripts)


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
