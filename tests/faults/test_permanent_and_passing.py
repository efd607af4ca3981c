"""What needs the user is reported at once; what passes is not given up; a process that hangs is seen and can be ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from mlflow.exceptions import MlflowException

from rltrack import TrainingLoop
from rltrack.addresses import sqlite_uri
from rltrack.cli import run_command
from rltrack.config import LoopSettings
from rltrack.console.deliveries import sync_runs
from rltrack.errors import RegistryUnavailable, RunBusy, SchemaMismatch
from rltrack.files import take_lock
from rltrack.registry.model_registry import ModelRegistry
from rltrack.runs import Root
from rltrack.tracking import delivery as deliveries
from rltrack.tracking import shipper, takeover
from rltrack.tracking.bookmark import is_delivered, read_bookmark
from rltrack.tracking.destination import Destination
from rltrack.tracking.sinks.answers import explain
from rltrack.tracking.sinks.embedded import MetricRows, ensure_database
from rltrack.tracking.sinks.relocation import relocate
from rltrack.tracking.sinks.schema import KNOWN_REVISIONS, check_schema, expected_revision
from tests.support.agents import TINY, ScriptedAgent
from tests.support.servers import free_port

PROJECT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    ensure_database(folder)
    return folder / "mlflow.db"


@pytest.fixture
def database(made, own_root):
    own_root.mkdir()
    return Path(shutil.copy(made, own_root))


def change(database: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def train(name="one", uri=None):
    tracking = {"mlflow_tracking_uri": uri} if uri else {}
    settings = LoopSettings.model_validate({"training": {"total_timesteps": 50}, "tracking": tracking})
    loop = TrainingLoop(ScriptedAgent(), TINY, settings=settings, name=name)
    loop.run()
    return Root().find(name)


def ship(run, patience=600.0):
    shipper.prepare_process()
    return shipper.ship_run(run, patience=patience, notify=lambda _: None)


# ---- MLflow's schema ----


@pytest.mark.slow
def test_the_installed_mlflow_is_one_that_is_written_to_directly(database):
    """A new release of MLflow fails here: see "A new release of MLflow or Prefect" in CONTRIBUTING.md."""
    assert expected_revision() in KNOWN_REVISIONS
    check_schema(database)
    assert MetricRows(database.parent).is_usable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("revision", "words"), [("17e22815139b", "mlflow db upgrade "), ("ffffffffffff", "pip install --upgrade mlflow")]
)
def test_a_database_of_another_schema_waits_for_a_person(database, revision, words):
    """With ten minutes of patience it ends at once: what is tried again for ten minutes would fail by this test's time limit."""
    change(database, f"UPDATE alembic_version SET version_num = '{revision}'")
    run = train()
    assert ship(run) == shipper.EXIT_NOT_DELIVERED
    problem = read_bookmark(run).mlflow.problem
    assert problem.kind == "person"
    assert words in problem.message
    assert read_bookmark(run).tensorboard.finished_at is not None
    with pytest.raises(SchemaMismatch, match=words):
        ModelRegistry(Root()).names()
    assert run_command(["doctor"]) == 1
    change(database, f"UPDATE alembic_version SET version_num = '{expected_revision()}'")
    assert ship(run, 0.0) == shipper.EXIT_DELIVERED


@pytest.mark.slow
def test_the_same_for_a_database_that_the_user_named(database, tmp_path):
    other = Path(shutil.copy(database, tmp_path / "o'ther.db"))
    change(other, "UPDATE alembic_version SET version_num = '17e22815139b'")
    run = train(uri=sqlite_uri(other))
    assert ship(run) == shipper.EXIT_NOT_DELIVERED
    problem = read_bookmark(run).mlflow.problem
    assert problem.kind == "person"
    assert "mlflow db upgrade 'sqlite:///" in problem.message


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE alembic_version SET version_num = 'ffffffffffff'"],
        ["DROP TABLE alembic_version"],
        ["CREATE UNIQUE INDEX more ON metrics (run_uuid, key, step)"],
        ["CREATE TRIGGER more AFTER INSERT ON metrics BEGIN SELECT 1; END"],
        ["ALTER TABLE metrics ADD COLUMN attributes JSON"],
        [
            "ALTER TABLE metrics RENAME TO before",
            "CREATE TABLE metrics (key VARCHAR(250), value FLOAT, timestamp BIGINT, run_uuid VARCHAR(32), step BIGINT, "
            "is_nan BOOLEAN, PRIMARY KEY (key, timestamp, step, run_uuid))",
        ],
    ],
)
@pytest.mark.slow
def test_rows_go_mlflows_own_way_where_the_table_is_another(database, statements):
    change(database, *statements)
    rows = MetricRows(database.parent)
    assert not rows.is_usable
    rows.close()


# ---- what passes, and what does not ----


def connection_error(error):
    failed = MlflowException(
        "API request to http://host:1/x failed with exception HTTPConnectionPool(...): Max retries exceeded"
    )
    failed.__cause__ = error
    return failed


@pytest.mark.parametrize(
    ("error", "address", "person", "words"),
    [
        (connection_error(requests.ConnectionError(ConnectionRefusedError(111, "x"))), "http://h", False, "connection refused"),
        (connection_error(requests.ReadTimeout()), "http://h", False, "no answer within its time"),
        (connection_error(requests.ConnectTimeout()), "http://h", False, "no connection within its time"),
        (connection_error(requests.exceptions.SSLError()), "https://h", True, "certificate"),
        (MlflowException("busy", error_code=8), "http://h", False, "answers"),
        (MlflowException("unable to open database file", error_code=8), "sqlite:////x.db", True, "access rights"),
        (MlflowException("attempt to write a readonly database"), "sqlite:////x.db", True, "access rights"),
        (MlflowException("(sqlite3.OperationalError) database is locked"), "sqlite:////x.db", False, "locked"),
        (MlflowException("database is locked; the run does not exist yet"), "http://h", False, "locked"),
        (MlflowException("response body was not in a valid JSON format: <html>"), "http://h", True, "not MLflow that answers"),
        (MlflowException("failed with error code 502 != 200. Response body: '<html>'"), "http://h", False, "502"),
        (ModuleNotFoundError("No module named 'psycopg'"), "postgresql://h/d", True, "psycopg"),
    ],
)  # fmt: skip
def test_errors_that_pass_and_errors_that_need_a_person(error, address, person, words):
    message, needs_a_person = explain(error, address)
    assert needs_a_person is person
    assert words in message


@contextlib.contextmanager
def answering(status: int, body: bytes = b'{"error_code": "PERMISSION_DENIED", "message": "no"}'):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_registry_that_forbids_says_that_the_account_may_not(own_root, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(403) as uri, pytest.raises(RegistryUnavailable, match="This account may not write there"):
        ModelRegistry(Root(), Destination(uri)).names()


def test_a_registry_that_is_down_says_that_it_does_not_answer(own_root, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RegistryUnavailable, match=r"does not answer \(connection refused\)"):
        ModelRegistry(Root(), Destination(uri)).names()


@pytest.mark.slow
def test_the_end_of_a_training_waits_a_moment_for_a_server_that_is_down(own_root, monkeypatch):
    """Counted in turns, not in seconds: of 120 seconds, five are waited."""
    run = train(uri=f"http://127.0.0.1:{free_port()}")
    assert ship(run, 0.0) == shipper.EXIT_NOT_DELIVERED
    problem = read_bookmark(run).mlflow.problem
    assert problem.kind == "passing"
    assert "does not answer (connection refused)" in problem.message
    assert "urllib3" not in problem.message
    clock, turns = [0.0], []
    monkeypatch.setattr(deliveries.time, "monotonic", lambda: clock[0])

    def wait(seconds: float) -> bool:
        turns.append(seconds)
        clock[0] += seconds
        return False

    assert deliveries.wait_until_delivered(run, wait, 120.0) is False
    assert sum(turns) == deliveries.KNOWN_DOWN_SECONDS
    turns.clear()
    bookmark = read_bookmark(run)
    bookmark.mlflow.problem = None
    bookmark.save(run.bookmark_file)
    assert deliveries.wait_until_delivered(run, wait, 120.0) is False
    assert sum(turns) == 120.0, "one that may answer is waited for"


# ---- a process that hangs, or waits ----


@contextlib.contextmanager
def holding(run, script: str, *words: str):
    """A process that holds a run's delivery."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words, str(run.path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": PROJECT},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from rltrack.files import take_lock\n"
    "from rltrack.tracking.takeover import heartbeat\n"
    "lock = take_lock(Path(sys.argv[-1]) / 'shipper.lock')\n"
    "with heartbeat(lock):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(300)\n"
)


@pytest.mark.slow
def test_a_heartbeat_shows_that_a_process_runs_and_a_stop_that_it_does_not(database, monkeypatch):
    monkeypatch.setattr(takeover, "STALLED_SECONDS", 3.0)
    run = train()
    assert takeover.silent_seconds(run) is None
    with holding(run, HOLD) as process:
        os.utime(run.shipper_lock, (1, 1))
        deadline = time.monotonic() + 60
        while takeover.is_stalled(run):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGSTOP)
        while not takeover.is_stalled(run):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def stop_and_age(process, run):
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").exists() and " T " not in Path(f"/proc/{process.pid}/stat").read_text():
        time.sleep(0.02)
    os.utime(run.shipper_lock, (time.time() - 3600, time.time() - 3600))


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_sync_says_since_when_a_stopped_process_has_not_moved_and_takes_over(everything, database, capsys):
    run = train()
    with holding(run, HOLD, "rltrack.tracking.shipper") as process:
        stop_and_age(process, run)
        asked = ["sync", "--all"] if everything else ["sync", "one"]
        assert run_command(asked) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert f"process {process.pid} sent no heartbeat since" in said
        assert "rltrack sync one --take-over" in said
        assert process.poll() is None, "without being asked to, nothing is ended"
        assert run_command([*asked, "--take-over"]) == 0
        assert process.wait(10) == -signal.SIGKILL
    assert is_delivered(run)


@pytest.mark.slow
def test_a_process_that_is_not_rltracks_is_never_ended(database, monkeypatch):
    run = train()
    with holding(run, HOLD, "some-other-program") as process:
        stop_and_age(process, run)
        with pytest.raises(RunBusy, match="not provably"):
            takeover.take_over(run)
        assert not sync_runs(Root(), run, again=False, take_over=True)
        assert process.poll() is None
    lock = take_lock(run.shipper_lock)
    monkeypatch.setattr(takeover, "_END_SECONDS", 0.1)
    with pytest.raises(RunBusy):  # this process itself
        takeover.take_over(run)
    os.close(lock)


@pytest.mark.slow
def test_a_lock_with_another_processs_number_ends_no_process(database):
    """The number of a process that is long gone may be another's now."""
    run = train()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "rltrack.tracking.shipper"])
    try:
        with holding(run, HOLD, "rltrack.tracking.shipper"):
            run.shipper_lock.write_text(f"{bystander.pid}\n")
            with pytest.raises(RunBusy, match="not provably"):
                takeover.take_over(run)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.slow
def test_relocate_ends_the_process_that_waits_for_it_and_no_other(database, own_root, tmp_path):
    assert ship(train(), 0.0) == shipper.EXIT_DELIVERED
    own_root.rename(tmp_path / "new")
    root = Root(tmp_path / "new")
    os.environ["RLTRACK_ROOT"] = str(root.path)  # the fixture puts it back
    run = train("two")
    assert ship(run, 0.0) == shipper.EXIT_NOT_DELIVERED
    assert takeover.waits_for_a_person(run)
    with holding(run, HOLD, "rltrack.tracking.shipper") as process:
        assert relocate(root) is not None
        assert process.wait(10) == -signal.SIGKILL
    assert not run.is_shipped()
    assert ship(run, 0.0) == shipper.EXIT_DELIVERED
    root.path.rename(tmp_path / "newer")
    root = Root(tmp_path / "newer")
    with holding(root.find("two"), HOLD, "rltrack.tracking.shipper") as process:
        with pytest.raises(Exception, match="being delivered: two"):
            relocate(root)
        assert process.poll() is None
    assert relocate(root) is not None
