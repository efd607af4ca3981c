"""Paths inside addresses, and names of one place: odd letters in the root's path, symbolic links, a root that was moved."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from rltrack import TrainingLoop
from rltrack.addresses import (
    check_addressable,
    file_path,
    file_uri,
    moved,
    same_address,
    sqlite_path,
    sqlite_uri,
    without_account,
)
from rltrack.console.runs import run_details
from rltrack.errors import ConfigurationError, SchemaMismatch
from rltrack.files import take_lock
from rltrack.flows.server import ServerFolder, _migrate, server_settings
from rltrack.registry.comparisons import compare_link
from rltrack.registry.origins import _check_database
from rltrack.runs import Root
from rltrack.studies.search import Search
from rltrack.tracking import shipper
from rltrack.tracking.bookmark import is_delivered, read_bookmark
from rltrack.tracking.destination import Destination, read_destination, resolve_destination, write_destination
from rltrack.tracking.pages import published
from rltrack.tracking.report import RunReport
from rltrack.tracking.sinks.embedded import ensure_database, moved_from
from rltrack.tracking.sinks.mlflow import MlflowSink
from rltrack.tracking.sinks.relocation import relocate
from tests.support.agents import TINY, ScriptedAgent
from tests.support.servers import check_delivered

ODD = [
    "a#b",
    "a%41b",
    "a b",
    "it's",
    'a"b',
    "é ü 根",
    "a:b",
    "a&b=c;d",
    "me@home",
    "a\\b",
    "[x]",
    "$HOME ~ {y}",
    "a+b",
    "%",
]
ODD_FOLDERS = [
    " ".join(ODD[:5]),
    *(pytest.param(" ".join(some), marks=pytest.mark.slow) for some in (ODD[5:10], ODD[10:])),
]
REFUSED = ["a?b", "a\nb", "a\x1b[31mb", ":memory:", "x mode=memory", "a\udcffb"]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database, to be copied: making one takes seconds."""
    folder = tmp_path_factory.mktemp("made")
    ensure_database(folder)
    return folder / "mlflow.db"


def train(root: Path, name: str):
    """Train and deliver a run under a root, in this process."""
    loop = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=50, eval_freq=20, name=name, root=root)
    loop.run()
    run = Root(root).find(name)
    shipper.prepare_process()
    return run, shipper.ship_run(run, patience=0.0, notify=lambda _: None)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ODD)
def test_there_and_back(name, tmp_path):
    path = tmp_path / name / "file.db"
    assert sqlite_path(sqlite_uri(path)) == path
    assert sqlite_path(sqlite_uri(path, "aiosqlite")) == path
    assert sqlite_path(f"{sqlite_uri(path)}?timeout=3") == path
    assert file_path(file_uri(path)) == path
    assert file_path(str(tmp_path)) == tmp_path
    new = tmp_path / "new"
    for form in (str, file_uri, sqlite_uri):
        assert moved(form(path), path.parent, new) == form(new / "file.db")
        assert moved(form(tmp_path / f"{name}2"), path.parent, new) == form(tmp_path / f"{name}2")


def test_what_is_no_local_address():
    assert sqlite_path("sqlite://") is None
    assert sqlite_path("postgresql://host/db") is None
    assert file_path("mlflow-artifacts:/1") is None
    assert file_path("s3://bucket/key") is None
    assert file_path("file://other-machine/folder") is None
    assert without_account("https://me:p%40ss@host:5000/x?y=a@b") == "https://host:5000/x?y=a@b"
    assert without_account("https://host/a@b") == "https://host/a@b"


@pytest.mark.parametrize("name", ODD_FOLDERS, ids=range(3))
@pytest.mark.slow
def test_a_root_with_odd_letters_is_trained_and_delivered_under(name, tmp_path, database, monkeypatch, plots):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / name / "mlruns"
    root.mkdir(parents=True)
    shutil.copy(database, root)
    run, result = train(root, "one")
    assert result == shipper.EXIT_DELIVERED, read_bookmark(run).mlflow.problem
    assert run_details(run)["delivery"]["complete"]
    check_delivered(run, sqlite_uri(root / "mlflow.db"), "FINISHED")
    assert list((root / "artifacts").rglob("config.yaml"))
    assert list((root / "artifacts").rglob("plots/learning_curve.png"))
    assert all(path.is_relative_to(root) for path in files(tmp_path))
    assert moved_from(root) is None
    _check_database(sqlite_uri(root / "mlflow.db"))
    Search("trials", Root(root))._connect()
    assert (root / "studies" / "trials").is_dir()
    assert all(path.is_relative_to(root) for path in files(tmp_path))


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_address_can_hold_is_refused_before_anything_is_made(name, tmp_path):
    with pytest.raises(ConfigurationError, match="address of a database cannot hold"):
        TrainingLoop(ScriptedAgent(), TINY, total_timesteps=50, name="one", root=tmp_path / name).run()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError):
        ensure_database(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_path_is_fine(tmp_path):
    check_addressable(tmp_path)


def test_prefects_database_lies_in_the_root(tmp_path, monkeypatch):
    """The template of this release is used where there is one, and made here where not: in this process, without a server."""
    root = tmp_path / "a #%41é'b"
    folder = ServerFolder(root)
    folder.path.mkdir(parents=True)
    settings = server_settings(folder, 4200)
    assert sqlite_path(settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"]) == folder.path / "prefect.db"
    template = tmp_path / "templates"
    monkeypatch.setattr("rltrack.flows.server._template_folder", lambda: template)
    template.mkdir()
    import prefect

    (template / f"prefect-{prefect.__version__}.db").write_bytes(b"")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
    _migrate(folder)
    assert (folder.path / "prefect.db").exists()

    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    async def use() -> None:
        engine = create_async_engine(settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE proof (x INTEGER)"))
        await engine.dispose()

    asyncio.run(use())
    with sqlite3.connect(folder.path / "prefect.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("proof",)]


def test_a_users_own_relative_database_with_odd_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    found = resolve_destination({"mlflow_tracking_uri": "sqlite:///a #%41/b.db"}).tracking_uri
    assert sqlite_path(found) == tmp_path / "a #%41" / "b.db"
    with pytest.raises(ConfigurationError, match=r"sqlite:///.*/a #b/mlflow.db"):
        resolve_destination({"mlflow_tracking_uri": "./a #b"})


# ---- a root with more than one name ----


@pytest.fixture
def linked(tmp_path, database):
    real = tmp_path / "real"
    real.mkdir()
    shutil.copy(database, real)
    (tmp_path / "link").symlink_to(real)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("names", [("real", "link"), ("link", "real")])
def test_a_root_used_under_two_names(names, linked):
    runs = []
    for root, name in zip(names, ("one", "two"), strict=True):
        run, result = train(linked / root, name)
        assert result == shipper.EXIT_DELIVERED, read_bookmark(run).mlflow.problem
        runs.append(run)
    assert moved_from(linked / "real") is None
    assert moved_from(linked / "link") is None
    before = read_bookmark(runs[0]).mlflow.state["run_id"]
    other = Root(linked / names[1]).find("one")
    assert is_delivered(other)
    sink = MlflowSink(Destination(), linked / names[1], read_bookmark(other).mlflow.state)
    assert not sink.is_lost(RunReport(other, {})), "nothing is delivered again for the sake of a name"
    forgotten = read_bookmark(other)
    forgotten.mlflow.finished_at = None
    forgotten.save(other.bookmark_file)
    assert shipper.ship_run(other, patience=0.0, notify=lambda _: None) == shipper.EXIT_DELIVERED
    assert read_bookmark(other).mlflow.state["run_id"] == before, "the same MLflow run under both names"
    found = MlflowClient(sqlite_uri(linked / "real" / "mlflow.db")).search_runs(["1"])
    assert len(found) == 2
    assert compare_link(runs) is None, "no page is served"
    with published(Root(linked / names[0]), "http://127.0.0.1:5001"):
        link = compare_link(runs)
    assert link.startswith("http://127.0.0.1:5001/#/compare-runs?"), "one database, whatever it was called"
    assert same_address(sqlite_uri(linked / "real" / "mlflow.db"), sqlite_uri(linked / "link" / "mlflow.db"))


@pytest.mark.slow
def test_a_move_after_both_names_were_used(linked):
    for root, name in (("real", "one"), ("link", "two")):
        train(linked / root, name)
    (linked / "link").unlink()
    (linked / "real").rename(linked / "new é \"x'")
    new = linked / "new é \"x'"
    assert moved_from(new) is not None
    run, result = train(new, "three")
    assert result == shipper.EXIT_NOT_DELIVERED
    assert "rltrack relocate" in read_bookmark(run).mlflow.problem.message
    _, changed = relocate(Root(new))
    assert changed > 0
    assert moved_from(new) is None
    rows = sqlite3.connect(new / "mlflow.db").execute("SELECT artifact_location FROM experiments").fetchall()
    assert {file_path(location).parent.parent for (location,) in rows if "/artifacts/rl" in location} == {new}
    shipper.ship_run(run, patience=0.0, notify=lambda _: None)
    for name in ("one", "two", "three"):
        found = Root(new).find(name)
        assert is_delivered(found), name
        check_delivered(found, sqlite_uri(new / "mlflow.db"), "FINISHED")
    assert relocate(Root(new)) is None


@pytest.mark.slow
def test_relocating_waits_for_a_process_that_starts_to_deliver(linked):
    train(linked / "real", "one")
    (linked / "real").rename(linked / "new")
    held = take_lock(Root(linked / "new").find("one").shipper_lock)
    threading.Timer(1.5, os.close, (held,)).start()
    assert relocate(Root(linked / "new")) is not None


@pytest.mark.slow
def test_relocating_into_a_folder_inside_the_old_one(linked):
    train(linked / "real", "one")
    new = linked / "real" / "mlruns"
    (linked / "real").rename(linked / "aside")
    (linked / "real").mkdir()
    (linked / "aside").rename(new)
    assert relocate(Root(new)) is not None
    assert moved_from(new) is None
    assert relocate(Root(new)) is None


@pytest.mark.slow
def test_relocating_a_database_of_an_unknown_schema_changes_nothing(linked):
    train(linked / "real", "one")
    (linked / "real").rename(linked / "new")
    database = linked / "new" / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    before = sqlite3.connect(database).execute("SELECT * FROM experiments").fetchall()
    with pytest.raises(SchemaMismatch, match="Nothing was changed"):
        relocate(Root(linked / "new"))
    assert sqlite3.connect(database).execute("SELECT * FROM experiments").fetchall() == before


@pytest.mark.slow
def test_a_users_own_database_in_the_root_moves_along(linked):
    root = linked / "real"
    run, _ = train(root, "one")
    write_destination(run, Destination(sqlite_uri(root / "own é.db")))
    bookmark = read_bookmark(run)
    bookmark.mlflow.state["tracking_uri"] = sqlite_uri(root / "own é.db")
    bookmark.save(run.bookmark_file)
    root.rename(linked / "new é")
    relocate(Root(linked / "new é"))
    run = Root(linked / "new é").find("one")
    assert read_destination(run).tracking_uri == sqlite_uri(linked / "new é" / "own é.db")
    assert read_bookmark(run).mlflow.state["tracking_uri"] == sqlite_uri(linked / "new é" / "own é.db")
    assert os.fspath(linked / "real") not in run.bookmark_file.read_text()


# ---- links that can be opened, options by both names ----


@pytest.mark.slow
def test_links_have_no_account(tmp_path, monkeypatch):
    from rltrack.flows.links import flow_run_page, mlflow_link

    run, _ = train(tmp_path / "mlruns", "one")
    found = read_bookmark(run)
    found.mlflow.state |= {"tracking_uri": "https://me:***@tracking.example:5000", "run_id": "r", "experiment_id": "1"}
    found.save(run.bookmark_file)
    assert mlflow_link(run) == "https://tracking.example:5000/#/experiments/1/runs/r"
    assert compare_link([run]).startswith("https://tracking.example:5000/#/compare-runs?")
    assert flow_run_page("https://me:***@prefect.example/api", "f") == "https://prefect.example/runs/flow-run/f"


def test_both_spellings_of_the_page_s_port(monkeypatch):
    from rltrack.cli import run_command

    asked = []
    monkeypatch.setattr("rltrack.ui.serve", lambda root, **options: asked.append(options["port"]))
    monkeypatch.setattr("rltrack.flows.stack.up", lambda root, options, *_, **__: asked.append(options.ports["mlflow"]))
    for option in ("--port", "--mlflow-port"):
        assert run_command(["ui", option, "7001"]) == 0
        assert run_command(["up", "--foreground", option, "7001"]) == 0
    assert asked == [7001] * 4
