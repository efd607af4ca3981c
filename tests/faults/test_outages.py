"""MLflow is down, hangs, refuses, loses answers, or lost the run: training goes on, nothing is lost, everybody is told why."""

from __future__ import annotations

import signal
import time

import pytest

from rltrack import TrainingLoop
from rltrack.config import LoopSettings
from rltrack.console.runs import run_details
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.tracking import shipper
from rltrack.tracking.bookmark import forget_delivery, is_delivered, read_bookmark
from tests.support.agents import TINY, ScriptedAgent
from tests.support.proxy import Proxy
from tests.support.servers import MlflowServer, check_delivered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


def train(uri, name="outage", iterations=40, seconds=0.0, experiment="outages"):
    agent = ScriptedAgent(skills=[0.1, 0.5, 0.9])
    agent.before_iteration = lambda iteration: time.sleep(seconds / iterations)
    settings = LoopSettings.model_validate(
        {
            "training": {"total_timesteps": iterations * 10, "eval_freq": 100},
            "evaluation": {"episodes": 2},
            "tracking": {"mlflow_tracking_uri": uri, "experiment": experiment},
        }
    )
    loop = TrainingLoop(agent, TINY, settings=settings, name=name)
    return loop, agent


def ship(run, patience=0.0):
    """Deliver in this process, as the shipper does in its own."""
    said = []
    shipper.prepare_process()
    result = shipper.ship_run(run, patience=patience, notify=said.append)
    return result, said


@pytest.mark.parametrize(
    "mode",
    [500, pytest.param(503, marks=pytest.mark.nightly), 401, pytest.param(403, marks=pytest.mark.nightly), 404, "hang"],
)
def test_a_server_that_does_not_take_it(mode, proxy, server):
    proxy.mode = mode
    loop, _ = train(proxy.uri)
    assert loop.run().state.value == "completed"
    run = Root().find("outage")
    result, said = ship(run)
    assert result == shipper.EXIT_NOT_DELIVERED
    problem = read_bookmark(run).mlflow.problem
    assert problem.kind == ("person" if mode in (401, 403, 404) else "passing")
    assert said == [f"mlflow: {problem.message}"], "said once, not at each try"
    assert run_details(run)["delivery"]["mlflow"]["problem"]["message"] == problem.message
    assert read_bookmark(run).tensorboard.finished_at is not None, "TensorBoard does not wait for MLflow"

    proxy.mode = "pass"
    assert ship(run)[0] == shipper.EXIT_DELIVERED
    check_delivered(run, server.uri, "FINISHED")
    assert read_bookmark(run).mlflow.problem is None


def test_an_outage_in_the_middle_and_one_at_the_end(proxy, server, delivery, forked):
    loop, agent = train(proxy.uri, iterations=100, seconds=12.0)
    changes = {30: 500, 50: "pass", 90: "hang"}
    slow = agent.before_iteration

    def before(iteration):
        proxy.mode = changes.get(iteration, proxy.mode)
        slow(iteration)

    agent.before_iteration = before
    loop.run()
    run = Root().find("outage")
    assert not loop.wait_for_tracking(1)
    proxy.mode = "pass"
    assert loop.wait_for_tracking(60), "the shipper goes on by itself when the server answers again"
    check_delivered(run, server.uri, "FINISHED")


@pytest.mark.parametrize("call", ["experiments/create", "runs/create", "runs/log-batch", "runs/update"])
def test_lost_answers_double_nothing(call, proxy, server):
    """The server did what it was asked, and the answer never came."""
    loop, _ = train(proxy.uri, "lost", experiment=f"lost {call.replace('/', ' ')}")
    loop.run()
    run = Root().find("lost")
    proxy.lose = call
    for _ in range(3):
        assert ship(run)[0] == shipper.EXIT_NOT_DELIVERED or call in ("experiments/create", "runs/create")
    assert any(call in path for path in proxy.calls)
    proxy.lose = ""
    assert ship(run)[0] == shipper.EXIT_DELIVERED
    check_delivered(run, server.uri, "FINISHED")


def test_a_poisoned_value_is_set_aside_and_the_rest_delivered(proxy, server):
    loop, agent = train(proxy.uri, "poisoned")
    real = agent.advance

    def advance(observer):
        stats = real(observer)
        if agent.iteration == 7:
            stats.metrics.append((agent.total, {"custom/poison": 1.5, "custom/fine": 2.5}))
        return stats

    agent.advance = advance
    loop.run()
    run = Root().find("poisoned")
    proxy.poison = b"custom/poison"
    result, _ = ship(run)
    assert result == shipper.EXIT_DELIVERED
    bookmark = read_bookmark(run)
    assert bookmark.mlflow.set_aside == 1
    (aside,) = read_journal(run.set_aside_file)
    assert (aside["key"], aside["value"], aside["step"]) == ("custom/poison", 1.5, 70)
    assert "INVALID_PARAMETER_VALUE" in aside["reason"]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.uri)
    found = client.get_run(bookmark.mlflow.state["run_id"])
    assert "custom/poison" not in found.data.metrics
    assert found.data.metrics["custom/fine"] == 2.5
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 40
    details = run_details(run)["delivery"]
    assert details["mlflow"]["set_aside"] == 1
    assert details["set_aside_file"] == str(run.set_aside_file)


def test_an_outage_while_a_poisoned_batch_is_halved_sets_nothing_aside(proxy, server):
    loop, _ = train(proxy.uri, "halved")
    loop.run()
    run = Root().find("halved")
    proxy.poison = b"train/loss"
    calls = proxy.calls
    real = calls.append

    class Breaking(list):
        def append(self, path):
            real(path)
            if sum("log-batch" in call for call in calls) == 6:
                proxy.mode = 500

    proxy.calls = Breaking()
    assert ship(run)[0] == shipper.EXIT_NOT_DELIVERED
    assert read_bookmark(run).mlflow.set_aside == 0
    proxy.calls, proxy.mode, proxy.poison = [], "pass", b""
    assert ship(run)[0] == shipper.EXIT_DELIVERED
    check_delivered(run, server.uri, "FINISHED")


def delivered_as(run, seconds=60.0):
    """Wait until the shipper has made an MLflow run; return its id."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        bookmark = read_bookmark(run)
        if bookmark is not None and "run_id" in bookmark.mlflow.state:
            return bookmark.mlflow.state["run_id"]
        time.sleep(0.1)
    raise AssertionError(run.shipper_log.read_text())


def test_a_run_that_was_deleted_waits_for_a_person(proxy, server, delivery, forked):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.uri)
    loop, agent = train(proxy.uri, "deleted", iterations=100, seconds=8.0)
    slow = agent.before_iteration

    def before(iteration):
        slow(iteration)
        if iteration == 60:
            client.delete_run(delivered_as(Root().find("deleted")))

    agent.before_iteration = before
    assert loop.run().state.value == "completed"
    assert not loop.wait_for_tracking(60)
    run = Root().find("deleted")
    state = read_bookmark(run).mlflow.state
    problem = run_details(run)["delivery"]["mlflow"]["problem"]
    assert problem["kind"] == "person"
    assert f"mlflow runs restore --run-id {state['run_id']}" in problem["message"]
    while run.is_shipped():
        time.sleep(0.1)
    client.restore_run(state["run_id"])
    assert ship(run)[0] == shipper.EXIT_DELIVERED
    check_delivered(run, server.uri, "FINISHED")

    client.delete_run(state["run_id"])
    forget_delivery(run)
    assert ship(run)[0] == shipper.EXIT_DELIVERED
    assert read_bookmark(run).mlflow.state["run_id"] != state["run_id"]
    check_delivered(run, server.uri, "FINISHED")


def test_a_server_that_is_killed_and_comes_back(tmp_path, delivery, forked):
    server = MlflowServer(tmp_path / "mlflow").start()
    try:
        loop, agent = train(server.uri, "killed", iterations=100, seconds=10.0)
        slow = agent.before_iteration

        def before(iteration):
            slow(iteration)
            if iteration == 40:
                server.kill()
            elif iteration == 60:
                server.start(wait=False)

        agent.before_iteration = before
        loop.run()
        server.wait_until_up()
        assert loop.wait_for_tracking(60)
        check_delivered(Root().find("killed"), server.uri, "FINISHED")
    finally:
        server.kill()


def test_training_whose_whole_process_group_dies_is_put_right_by_the_next_command(own_root, delivery):
    import os
    import subprocess
    import sys
    from pathlib import Path

    from rltrack.cli import run_command

    script = (
        "import time, tests.support.agents as a; from rltrack import TrainingLoop\n"
        "agent = a.ScriptedAgent(); agent.before_iteration = lambda i: time.sleep(0.05)\n"
        "TrainingLoop(agent, a.TINY, total_timesteps=10**6, name='dead').run()"
    )
    project = str(Path(__file__).resolve().parents[2])
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], cwd=project, env={**os.environ, "PYTHONPATH": project}, start_new_session=True
    )
    run = Root().runs_folder / "dead"
    while not (run / "delivered.json").exists() or len((run / "journal.jsonl").read_bytes().splitlines()) < 100:
        time.sleep(0.1)
    run = Root().find("dead")
    from rltrack.files import lock_holder

    os.kill(lock_holder(run.shipper_lock), signal.SIGKILL)
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    while run.is_shipped():  # until the kernel has taken it apart, its lock is held
        time.sleep(0.05)
    assert run.status().state == "interrupted"
    assert not is_delivered(run)
    assert run_command(["runs"]) == 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not is_delivered(run):
        time.sleep(0.2)
    assert check_delivered(run, f"sqlite:///{own_root / 'mlflow.db'}", "KILLED") > 50
