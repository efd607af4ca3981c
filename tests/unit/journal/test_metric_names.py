"""Names of metrics and parameters: no two become one in MLflow, and a run that was begun under other names goes on with them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_length_limit, _validate_metric_name, _validate_param_name
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import rltrack
from rltrack.journal import read_journal
from rltrack.journal.names import LONGEST, former_mlflow_name, journal_name, mlflow_name
from rltrack.runs import Root
from rltrack.tracking.sinks.base import Point
from rltrack.tracking.sinks.mlflow import NAMES_TAG, RUN_TAG
from tests.contract.test_sinks import database, held, make, new_report  # noqa: F401
from tests.support.servers import tensorboard_scalars

PLAIN = ["train/loss", "a b", "a-b", "eval/mean_reward", "ünï/cödé", "a.b:c", "x" * LONGEST, "_", "loss-20240131"]
ODD = [
    "", " ", "\t", "a ", " a", "a\n", "success (%)", "success [%]", "success {%}", "success ___", "a//b", "a/./b", "a/../b",
    "/a", "a/", ".", "..", "./a", "../a", "a/.", "x" * (LONGEST + 1), "x" * LONGEST + "y", "x" * 10_000, "\0", "a\0b", "\ud800",
    "\ud801", "💥", "💦", "loss=1", "loss*1", "∑", "(", ")", "%" * 300, "%" * 301, "a" + "/" * 300, mlflow_name("success (%)"),
]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_that_mlflow_takes_stays_as_it_is(name):
    assert mlflow_name(name) == name


@pytest.mark.parametrize("name", PLAIN + ODD)
def test_mlflow_takes_every_name(name):
    new = mlflow_name(name)
    _validate_metric_name(new)
    _validate_param_name(new)
    _validate_length_limit("key", LONGEST, new)
    assert new == new.strip()


def test_different_names_stay_different():
    names = PLAIN + ODD
    assert len({mlflow_name(name) for name in names}) == len(set(names))
    assert mlflow_name("success (%)") == "success ___-h0c21c3f264", "the same in each process and version"


def test_a_name_is_the_same_in_another_process():
    code = "from rltrack.journal.names import mlflow_name; print(mlflow_name('a/b (%)'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == mlflow_name("a/b (%)")


def test_names_that_are_no_text_are_recorded_as_text():
    assert journal_name(3) == "3"
    assert journal_name("\ud800").encode()
    assert journal_name("ä/b") == "ä/b"


@pytest.mark.parametrize("kind", ["mlflow", "mlflow-by-address"])
@pytest.mark.slow
def test_each_name_is_a_series_of_its_own_however_it_gets_there(kind, database):  # noqa: F811
    """Rows that are their key's latest go through MLflow, the others into its table: under the same names."""
    names = set(PLAIN + [journal_name(name) for name in ODD])
    report = new_report(database, "series")
    state: dict = {}
    sink = make(kind, report, state)
    sink.open(report)
    batch = [Point(dict.fromkeys(names, 1.0), step, 1_700_000_000.0 + step) for step in range(4)]
    assert sink.write(batch) == []
    assert sink.write(batch) == [], "the same again"
    sink.close()
    sink = make(kind, report, dict(state))
    sink.open(report)
    sink.write(batch)
    rows = held(kind, report, state)
    assert len(rows) == 4 * len(names)
    assert {row[0] for row in rows} == {mlflow_name(name) for name in names}
    tags = MlflowClient(state["tracking_uri"]).get_run(state["run_id"]).data.tags
    for name in names:
        if mlflow_name(name) != name and name and len(name) < 5000:
            assert tags[f"rltrack.name.{mlflow_name(name).rpartition('-')[2]}"] == name


@pytest.mark.slow
def test_parameters_and_tags_keep_apart_too(database, monkeypatch):  # noqa: F811
    report = new_report(database, "params")
    monkeypatch.setattr(report, "params", lambda: {"rate (1)": 1, "rate [1]": 2, "x" * 251: 3, "x" * 252: 4, "seed": 5})
    report.config.tracking.tags.update({"team (a)": "blue", "team [a]": "red"})
    sink = make("mlflow", report, {})
    sink.open(report)
    sink.open(report)
    data = MlflowClient(sink.state["tracking_uri"]).get_run(sink.run_id).data
    assert sorted(data.params.values()) == ["1", "2", "3", "4", "5"]
    assert data.params["seed"] == "5"
    assert data.tags[mlflow_name("team (a)")] == "blue"
    assert data.tags[mlflow_name("team [a]")] == "red"


def test_a_run_of_an_older_version_goes_on_under_its_names(database):  # noqa: F811
    """Half delivered by an older rltrack, whose bookmark may be lost: nothing is doubled under another name."""
    report = new_report(database, "older")
    state: dict = {}
    sink = make("mlflow", report, state)
    sink.open(report)
    client = MlflowClient(state["tracking_uri"])
    client.delete_tag(state["run_id"], NAMES_TAG)  # as an older version left it
    sink.open(report)
    batch = [Point({"success (%)": 1.0, "loss": 2.0}, step, 1_700_000_000.0 + step) for step in range(4)]
    sink.write(batch[:2])
    sink.close()
    again: dict = {}
    sink = make("mlflow", report, again)
    sink.open(report)
    sink.write(batch)
    assert again["run_id"] == state["run_id"]
    assert {row[0] for row in held("mlflow", report, again)} == {former_mlflow_name("success (%)"), "loss"}
    assert len(held("mlflow", report, again)) == 8
    sink.refresh(report)
    assert NAMES_TAG not in client.get_run(state["run_id"]).data.tags


def test_a_run_that_a_user_gave_gets_the_new_names(database):  # noqa: F811
    from rltrack.tracking.destination import Destination
    from rltrack.tracking.sinks.mlflow import MlflowSink

    report = new_report(database, "given")
    address = f"sqlite:///{database / 'mlflow.db'}"
    given = MlflowClient(address).create_run("0").info.run_id
    for _ in range(2):
        sink = MlflowSink(Destination(tracking_uri=address, mlflow_run_id=given), database, {})
        sink.open(report)
        sink.write([Point({"success (%)": 1.0}, 1, 1_700_000_000.0)])
    assert {row[0] for row in held("mlflow", report, {"run_id": given})} == {mlflow_name("success (%)")}
    assert MlflowClient(address).get_run(given).data.tags[RUN_TAG] == report.run_id


def test_tensorboard_keeps_names_as_they_are(database):  # noqa: F811
    report = new_report(database, "tags")
    sink = make("tensorboard", report, {})
    sink.open(report)
    names = [journal_name(name) for name in PLAIN + ODD if name]
    sink.write([Point(dict.fromkeys(names, 1.0), 1, 1_700_000_000.0)])
    sink.close()
    assert set(names) <= set(tensorboard_scalars(report.run))


class Names(BaseCallback):
    """What somebody's callback logs."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.logger.record("reward/success (%)", float(self.num_timesteps))
        self.logger.record("reward/success [%]", 2.0 * self.num_timesteps)
        self.logger.record("\ud800", 1.0)
        self.logger.record("", 3.0)


@pytest.mark.slow
def test_two_names_are_two_series_from_a_script_to_mlflow(database):  # noqa: F811
    """As `metric_names.py` of the issue."""
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(512, callback=[Names(), rltrack.TrackingCallback("metric-names")])
    report = new_report(database, "script")
    sink = make("mlflow", report, {})
    sink.open(report)
    for record in read_journal(Root().find("metric-names").journal_file):
        if record["kind"] == "metrics":
            sink.write([Point(record["values"], record["step"], record["time"])])
    series: dict[str, list[float]] = {}
    for key, _, value, *_ in held("mlflow", report, sink.state):
        series.setdefault(key, []).append(value)
    assert series[mlflow_name("reward/success (%)")] == [128.0, 256.0, 384.0, 512.0]
    assert series[mlflow_name("reward/success [%]")] == [256.0, 512.0, 768.0, 1024.0]
    assert len(series[mlflow_name("")]) == 4
    with sqlite3.connect(database / "mlflow.db") as connection:
        latest = {
            row[0] for row in connection.execute("SELECT key FROM latest_metrics WHERE run_uuid = ?", (sink.run_id,))
        }
    assert latest == set(series)
