"""However a training ends, MLflow says so; and many that start at once all work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rltrack import TrainingLoop
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import is_delivered, read_bookmark
from tests.support.agents import TINY, ScriptedAgent
from tests.support.servers import check_delivered

pytestmark = pytest.mark.slow
PROJECT = str(Path(__file__).resolve().parents[2])
SCRIPT = """
import sys, time
import tests.support.agents as a
from rltrack import TrainingLoop
name, seconds, what = sys.argv[1], float(sys.argv[2]), sys.argv[3]
agent = a.ScriptedAgent()
def before(iteration):
    time.sleep(seconds / 50)
    if what == "fail" and iteration == 40:
        raise RuntimeError("the simulator fell over")
agent.before_iteration = before
loop = TrainingLoop(agent, a.TINY, total_timesteps=500, name=name)
loop.run()
sys.exit(0 if loop.wait_for_tracking(90) else 1)
"""


def start(name, seconds=2.0, what="run"):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name, str(seconds), what],
        cwd=PROJECT, env={**os.environ, "PYTHONPATH": PROJECT}, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_until_delivered(run, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (is_delivered(run) and not run.is_shipped()):
        time.sleep(0.1)
    assert is_delivered(run), run.shipper_log.read_text()


def wait_until_some_is_delivered(path):
    while not ((path / "delivered.json").exists() and read_bookmark(RunDirectory(path)).mlflow.resources > 0):
        time.sleep(0.1)


def told(run, own_root):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{own_root / 'mlflow.db'}").get_run(read_bookmark(run).mlflow.state["run_id"])


@pytest.mark.parametrize("count", [4, pytest.param(8, marks=pytest.mark.nightly)])
def test_many_first_starts_at_once(count, own_root, delivery, request):
    """The nightly one has real processes, each of which would make MLflow's database."""
    if count == 4:
        request.getfixturevalue("forked")
    processes = [start(f"run-{index}", 1.0) for index in range(count)]
    for process in processes:
        assert process.wait(200) == 0, process.stderr.read().decode()[-2000:]
    for index in range(count):
        check_delivered(Root().find(f"run-{index}"), f"sqlite:///{own_root / 'mlflow.db'}", "FINISHED")


def test_killed_stopped_failed_and_resumed(own_root, delivery, forked):
    uri = f"sqlite:///{own_root / 'mlflow.db'}"
    killed, stopped, failed = start("killed", 60.0), start("stopped", 60.0), start("failed", 4.0, "fail")
    for name in ("killed", "stopped"):
        wait_until_some_is_delivered(Root().runs_folder / name)
    killed.send_signal(signal.SIGKILL)
    stopped.send_signal(signal.SIGTERM)
    assert killed.wait() == -signal.SIGKILL
    assert stopped.wait(60) == 0
    assert failed.wait(60) == 1
    runs = {name: Root().find(name) for name in ("killed", "stopped", "failed")}
    for run in runs.values():
        wait_until_delivered(run)
    check_delivered(runs["killed"], uri, "KILLED")
    check_delivered(runs["stopped"], uri, "KILLED")
    check_delivered(runs["failed"], uri, "FAILED")
    assert told(runs["killed"], own_root).data.tags["rltrack.reason"] == "its process died"
    assert told(runs["stopped"], own_root).data.tags["rltrack.reason"] == "SIGTERM received"
    assert told(runs["failed"], own_root).data.tags["rltrack.error"] == "RuntimeError: the simulator fell over"
    assert "system/process_memory_megabytes" in told(runs["killed"], own_root).data.metrics

    loop = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=500, name="killed", resume=True)
    loop.run()
    assert loop.wait_for_tracking(60)
    check_delivered(runs["killed"], uri, "FINISHED")


def test_a_shipper_that_dies_is_replaced(own_root, delivery, forked):
    from rltrack.files import lock_holder

    process = start("watched", 60.0)
    wait_until_some_is_delivered(Root().runs_folder / "watched")
    run = Root().find("watched")
    first = lock_holder(run.shipper_lock)
    os.kill(first, signal.SIGKILL)
    while process.poll() is None and (lock_holder(run.shipper_lock) == first or not run.is_shipped()):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert run.is_shipped(), "the loop starts another"
    assert lock_holder(run.shipper_lock) != first
    assert process.wait(90) == 0, (
        f"{process.stderr.read().decode()[-1500:]} {run.shipper_log.read_text()} {run.bookmark_file.read_text()}"
    )
    check_delivered(run, f"sqlite:///{own_root / 'mlflow.db'}", "KILLED")


def test_a_users_own_active_run_gets_the_numbers_and_keeps_its_name(own_root, delivery, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'own.db'}"
    mlflow.set_tracking_uri(uri)
    try:
        mlflow.set_experiment("theirs")
        with mlflow.start_run(run_name="their name", tags={"mlflow.note.content": "their words"}) as active:
            loop = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=200, name="borrowed")
            loop.run()
            assert loop.wait_for_tracking(60)
            assert mlflow.get_run(active.info.run_id).info.status == "RUNNING", "they end it, not we"
        found = mlflow.get_run(active.info.run_id)
        assert found.info.status == "FINISHED"
        assert found.info.run_name == "their name"
        assert found.data.tags["mlflow.note.content"] == "their words"
        assert len(mlflow.MlflowClient(uri).get_metric_history(active.info.run_id, "train/loss")) == 20
        assert len(mlflow.search_runs(["0", active.info.experiment_id])) == 1
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.tracking.fluent._active_experiment_id = None
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
