"""The stack: up, a run, down; and, nightly, schedules, kills and everything else that can happen to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.retraining import retrained, retrained_project
from tests.support.servers import free_port, postgres_database
from tests.support.stack import Stack, scheduled, short, whole
from tests.support.teams import two_teams

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_starts_trains_and_ends(tmp_path):
    short(Stack(tmp_path))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_schedule_fires_and_a_killed_run_comes_back_by_itself(tmp_path):
    """A flow that is killed and goes on is in every run too: test_server.py."""
    scheduled(Stack(tmp_path))


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_everything_that_can_happen(backend, tmp_path):
    if backend == "sqlite":
        whole(Stack(tmp_path))
        return
    with postgres_database() as uri:
        whole(Stack(tmp_path, uri.replace("postgresql+psycopg", "postgresql")))


@pytest.mark.nightly
def test_scheduled_retraining_promotes_only_what_is_better(tmp_path):
    retrained(Stack(tmp_path))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_champion_of_a_project_of_ones_own_is_retrained_on_a_schedule(tmp_path):
    retrained_project(Stack(tmp_path), PROJECT / "examples" / "own_project")


@pytest.mark.nightly
def test_two_teams_and_a_stranger_on_one_server_with_accounts(tmp_path):
    """A short form stands in every run: test_deploy.py, and the strangers of test_train_flow.py."""
    two_teams(tmp_path)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell here")
def test_mlflow_with_accounts_as_the_compose_file_starts_it(tmp_path):
    """The same script and settings, natively, on PostgreSQL; what they say is read in every run: test_deploy_files.py."""
    pytest.importorskip("flask_wtf", reason="MLflow's accounts need the extra 'server'")
    psycopg = pytest.importorskip("psycopg")
    port = free_port()
    with postgres_database() as uri:
        server, _, name = uri.rpartition("/")
        made = [f"{name}/rltrack_mlflow", f"{name}/rltrack_mlflow_accounts"]
        script = (PROJECT / "deploy" / "start-mlflow.sh").read_text()
        with psycopg.connect(uri.replace("+psycopg", ""), autocommit=True) as admin:
            for database in made:
                admin.execute(f'CREATE DATABASE "{database}"')
            environment = {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_DATABASE": f"{server}/{name}",
                "MLFLOW_USER": "admin",
                "MLFLOW_PASSWORD": "a-long-password",
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
                "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
                "POSTGRES_PASSWORD": "unused",
                "MLFLOW_HOST": "127.0.0.1",
                "MLFLOW_PORT": str(port),
                "MLFLOW_ARTIFACTS": str(tmp_path / "artifacts"),
                "MLFLOW_ALLOWED_HOSTS": f"127.0.0.1:{port}",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            }
            with open(tmp_path / "log", "ab") as log:
                process = subprocess.Popen(
                    ["sh", "-c", script], env=environment, stdout=log, stderr=log, start_new_session=True
                )
            try:
                answers = _answers(process, port, tmp_path / "log")
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for database in made:
                    admin.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
    assert answers == {"nobody": 401, "admin": 200, "admin with MLflow's own password": 401}


def _answers(process, port, log) -> dict[str, int]:
    deadline = time.monotonic() + 90
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            break
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.3)
    import base64

    found = {}
    for who, account in (
        ("nobody", None),
        ("admin", "admin:a-long-password"),
        ("admin with MLflow's own password", "admin:password1234"),
    ):
        headers = {"Authorization": f"Basic {base64.b64encode(account.encode()).decode()}"} if account else {}
        request = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found[who] = answer.status
        except urllib.error.HTTPError as error:
            found[who] = error.code
    return found
