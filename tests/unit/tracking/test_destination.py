"""Where numbers go: what the user set counts, in a fixed order."""

from __future__ import annotations

import stat

import pytest

from rltrack.errors import ConfigurationError, RunDamaged
from rltrack.runs import Root
from rltrack.tracking.destination import (
    Destination,
    read_destination,
    resolve_destination,
    without_password,
    write_destination,
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("TRACKING_URI", "RUN_ID", "EXPERIMENT_NAME", "EXPERIMENT_ID", "ALLOW_FILE_STORE"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)


def test_the_roots_own_database_is_the_default():
    assert resolve_destination({}) == Destination(None, "rltrack", None, None)


def test_environment_then_configuration(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from-env")
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    assert resolve_destination({}) == Destination("http://env:5000", "from-env", None, "abc")
    given = {"mlflow_tracking_uri": "http://config:5000", "experiment": "mine"}
    assert resolve_destination(given) == Destination("http://config:5000", "mine", None, "abc")


def test_what_an_earlier_attempt_used_is_remembered_unless_something_else_is_said(monkeypatch):
    before = Destination("http://first:5000", "old", None, None)
    assert resolve_destination({}, before) == before
    assert resolve_destination({"experiment": "new"}, before) == Destination("http://first:5000", "new", None, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://second:5000")
    assert resolve_destination({}, before).tracking_uri == "http://second:5000"


@pytest.mark.slow
def test_what_the_program_set_in_mlflow_counts(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'own.db'}"
    mlflow.set_tracking_uri(uri)
    try:
        mlflow.set_experiment("by-program")
        with mlflow.start_run() as run:
            found = resolve_destination({})
        assert found.tracking_uri == uri
        assert found.mlflow_run_id == run.info.run_id
        assert found.experiment_id == run.info.experiment_id
        assert resolve_destination({}).mlflow_run_id is None
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.tracking.fluent._active_experiment_id = None


def test_addresses_are_checked_and_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        resolve_destination({"mlflow_tracking_uri": "sqlite:///a/b.db"}).tracking_uri == f"sqlite:///{tmp_path}/a/b.db"
    )
    absolute = f"sqlite:///{tmp_path}/c.db"
    assert resolve_destination({"mlflow_tracking_uri": absolute}).tracking_uri == absolute
    for folder in ("mlruns", "./mlruns", "file:///tmp/mlruns"):
        with pytest.raises(ConfigurationError, match=r"keeps no runs in plain folders.*sqlite:///"):
            resolve_destination({"mlflow_tracking_uri": folder})


def test_passwords_are_kept_from_others(tmp_path):
    run = Root().create("secret", "")
    destination = Destination("postgresql://me:hunter2@host/db")
    write_destination(run, destination)
    write_destination(run, destination)
    assert read_destination(run) == destination
    assert stat.S_IMODE(run.destination_file.stat().st_mode) == 0o600
    assert destination.shown == "postgresql://me:***@host/db"
    assert without_password("cannot reach http://a:b@c:1/ now") == "cannot reach http://a:***@c:1/ now"
    run.destination_file.write_text("{")
    with pytest.raises(RunDamaged, match="nothing is delivered"):
        read_destination(run)


def test_the_address_of_the_roots_own_database_is_as_none(tmp_path, monkeypatch):
    """`rltrack models` says to export it; the lock of the registry and the folder of artifacts follow from who owns it."""
    pytest.importorskip("mlflow")
    from rltrack.registry.model_registry import ModelRegistry

    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    root = Root(tmp_path / "root")
    run = root.create("mine", "")
    plain = ModelRegistry(root)
    for given in (tmp_path / "root", tmp_path / "link"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{given}/mlflow.db")
        registry = ModelRegistry(root)
        assert registry.is_own
        assert (registry.uri, registry._lock_file("m")) == (plain.uri, plain._lock_file("m"))
        write_destination(run, resolve_destination({}))
        assert read_destination(run) == Destination()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert not ModelRegistry(root).is_own
