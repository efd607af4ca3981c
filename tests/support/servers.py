"""MLflow servers on loopback, PostgreSQL databases, and what MLflow and TensorBoard hold of a run."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

from rltrack.journal import read_journal
from rltrack.journal.reading import JournalReader
from rltrack.runs import RunDirectory
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.destination import read_destination
from rltrack.tracking.route import point_of
from tests.support.databases import SHARED, copy_for_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """A lean MLflow server; it can be killed, stopped (hung) and started again on the same port."""

    def __init__(self, folder: Path, backend: str | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        if backend is None and SHARED in os.environ:
            copy_for_server(folder / "server.db")
        self.backend = backend or f"sqlite:///{folder / 'server.db'}"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self, wait: bool = True) -> MlflowServer:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [*(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
                 *("--port", str(self.port), "--backend-store-uri", self.backend),
                 *("--artifacts-destination", str(self.folder / "artifacts"))],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment,
            )  # fmt: skip
        if wait:
            self.wait_until_up()
        return self

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.1)
        raise AssertionError("the MLflow server did not start")

    def signal(self, signum: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signum)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def postgres_database():
    """A fresh PostgreSQL database; skips where there is no server or no driver."""
    psycopg = pytest.importorskip("psycopg", reason="the PostgreSQL driver psycopg is not installed")
    host = os.environ.get("PGHOST", "127.0.0.1")
    user = os.environ.get("PGUSER", "postgres")
    name = f"rltrack_{uuid.uuid4().hex[:12]}"
    try:
        admin = psycopg.connect(host=host, user=user, dbname="postgres", autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL answers at {host}: {error}")
    admin.execute(f'CREATE DATABASE "{name}"')
    try:
        yield f"postgresql+psycopg://{user}@{host}/{name}"
    finally:
        for (made,) in admin.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", (f"{name}%",)).fetchall():
            admin.execute(f'DROP DATABASE IF EXISTS "{made}" WITH (FORCE)')
        admin.close()


def expected_metrics(run: RunDirectory, sink: str = "mlflow") -> dict[str, list[tuple[int, int, float]]]:
    """Every value that the run recorded for a sink: (step, milliseconds, value) by key."""
    found: dict[str, list[tuple[int, int, float]]] = {}
    records = [*read_journal(run.journal_file)]
    if run.resources_file.exists():
        with open(run.resources_file, "rb") as file:
            records += JournalReader(run.resources_file, resources=True).read(file)
    for record in records:
        point = point_of(record)
        if point is not None:
            for key, value in point.values_for(sink).items():
                found.setdefault(key, []).append((point.step, int(point.time * 1000), value))
    return {key: sorted(rows) for key, rows in found.items()}


def check_delivered(run: RunDirectory, tracking_uri: str, status: str) -> int:
    """Hold MLflow and TensorBoard against the journal: everything once, with its own value and time; return how many."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    bookmark = read_bookmark(run)
    assert bookmark is not None
    assert bookmark.mlflow.set_aside == 0
    everybodys = client.search_runs([bookmark.mlflow.state["experiment_id"]], max_results=1000)
    ours = [item for item in everybodys if item.data.tags.get("rltrack.directory") == str(run.path)]
    assert [item.info.run_id for item in ours] == [bookmark.mlflow.state["run_id"]], "one MLflow run"
    assert ours[0].info.status == status
    expected = expected_metrics(run)
    assert ours[0].data.metrics.keys() == expected.keys()
    for key, rows in expected.items():
        history = client.get_metric_history(ours[0].info.run_id, key)
        got = sorted((metric.step, metric.timestamp, metric.value) for metric in history)
        assert _comparable(got) == _comparable(rows), key
    scalars, in_tensorboard = tensorboard_scalars(run), expected_metrics(run, "tensorboard")
    drawn = {key: [row for row in rows if math.isfinite(row[2])] for key, rows in in_tensorboard.items()}
    assert scalars.keys() == {key for key, rows in drawn.items() if rows}
    for key, rows in scalars.items():
        assert [(step, round(value, 3)) for step, _, value in sorted(rows)] == [
            (step, round(_float32(value), 3)) for step, _, value in drawn[key]
        ], key
    return sum(len(rows) for rows in expected.values())


def tensorboard_scalars(run: RunDirectory) -> dict[str, list[tuple[int, float, float]]]:
    """Every scalar in the run's event files, duplicates too: (step, seconds, value) by tag."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found: dict[str, list[tuple[int, float, float]]] = {}
    for path in sorted(run.tensorboard.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tensor_util.make_ndarray(value.tensor))
                    found.setdefault(value.tag, []).append((event.step, event.wall_time, number))
    return found


def destination_uri(run: RunDirectory) -> str:
    """Where the run was delivered to."""
    destination = read_destination(run)
    return (destination and destination.tracking_uri) or f"sqlite:///{run.root / 'mlflow.db'}"


def _comparable(rows):
    return [(step, when, "NaN" if value != value else value) for step, when, value in rows]


def _float32(value: float) -> float:
    import numpy as np

    return float(np.float32(value))
