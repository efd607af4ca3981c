"""Training as a flow: the same bits, exact retries, true states, what the page shows."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from rltrack.config import TrainingConfig
from rltrack.console.steering import steer
from rltrack.errors import CheckpointFailed, ConfigurationError, MissingExtra, RltrackError, RunBusy, TrainingDiverged
from rltrack.flows import retries
from rltrack.flows import train as flow
from rltrack.flows import training as training_module
from rltrack.flows.page import artifact_key
from rltrack.journal import read_journal
from rltrack.journal.lines import encode_record, numbered_line
from rltrack.runs import Root
from rltrack.training import steering
from rltrack.training.trainer import Trainer
from rltrack.training.verify import comparable, first_difference, records_of

pytestmark = pytest.mark.slow


def config(name: str, environment: dict | None = None, **training) -> TrainingConfig:
    return TrainingConfig.from_mapping(
        {
            "name": name,
            "seed": 3,
            "agent": {
                "algorithm": "PPO",
                "device": "cpu",
                "hyperparameters": {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
            },
            "environment": {"id": "CartPole-v1", "n_envs": 2, **(environment or {})},
            "training": {"total_timesteps": 1500, "eval_freq": 500, "checkpoint_freq": 300, "checkpoint_seconds": None,
                         **training},
            "evaluation": {"episodes": 3},
        }
    )  # fmt: skip


def outcome(name: str) -> dict:
    run = Root().find(name)
    store = run.store()
    return {**comparable(store.read(store.find("last"))), "journal": records_of(run)}


def same(one: str, other: str) -> None:
    compared, difference = first_difference(outcome(one), outcome(other))
    assert difference is None
    assert compared > 100


def flow_runs(client, name: str):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    return client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))


def eventually(ask, seconds: float = 20.0):
    """The server records tasks and artifacts a little later."""
    deadline = time.monotonic() + seconds
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def test_the_flow_gives_the_same_bits_as_plain_training_and_shows_what_it_did(client, own_root):
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId

    Trainer(config("plain")).train()
    training = flow.train_here(config("flow"), own_root)
    same("plain", "flow")
    assert training.statistics.env_steps == 1536
    [flow_run] = flow_runs(client, "flow")
    assert flow_run.state.name == "Completed"
    assert "1,536 env steps, mean return" in flow_run.state.message
    ours = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))

    def names():
        found = sorted(task.name for task in client.read_task_runs(flow_run_filter=ours))
        return found if any(name.startswith("deliver") for name in found) else []

    found = eventually(names)
    assert "train from 0 to 300 env steps" in found
    assert "evaluate at 512" in found
    assert "checkpoint at 384" in found
    artifacts = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
    )
    by_key = {artifact.key: artifact for artifact in sorted(artifacts, key=lambda artifact: artifact.created)}
    assert by_key[artifact_key("flow", "progress")].data == 100.0
    summary = by_key[artifact_key("flow", "summary")].data  # MLflow's description of the run begins it
    assert "Best evaluation" in summary
    assert f"/runs/flow-run/{flow_run.id})" in summary
    assert [row["env steps"] for row in by_key[artifact_key("flow", "evaluations")].data] == [512, 1024, 1536]
    assert Root().find("flow").read_config()["tracking"]["tags"]["prefect.flow_run_id"] == str(flow_run.id)


def test_retries_are_exact(client, own_root, tmp_path, quick_retries):
    """An environment that raises at random moments: the flow ends as an undisturbed training."""
    failures = tmp_path / "failures"
    failures.touch()
    environment = {"id": "tests.support.flaky:Flaky-v0", "kwargs": {"failures": str(failures)}}
    Trainer(config("undisturbed", environment)).train()
    failures.write_bytes(b"x" * 4)
    flow.train_here(config("disturbed", environment), own_root)
    assert failures.stat().st_size == 0, "it did fail"
    same("undisturbed", "disturbed")
    assert len(Root().find("disturbed").attempts()) > 1
    [flow_run] = flow_runs(client, "disturbed")
    assert flow_run.state.name == "Completed"


def test_a_checkpoint_folder_that_fails_twice(client, own_root, monkeypatch, quick_retries):
    from rltrack.checkpoints import CheckpointStore

    Trainer(config("writable")).train()
    left = [1, 1]
    real = CheckpointStore.write

    def failing(self, prepared):
        if left:
            left.pop()
            raise CheckpointFailed("no space left on the device")
        return real(self, prepared)

    monkeypatch.setattr(CheckpointStore, "write", failing)
    flow.train_here(config("unwritable"), own_root)
    assert left == []
    same("writable", "unwritable")


@pytest.mark.parametrize(
    ("environment", "error", "words"),
    [
        ({"id": "tests.support.flaky:Nan-v0"}, TrainingDiverged, "NaN"),
        ({"id": "NoSuchEnv-v0"}, ConfigurationError, "NoSuchEnv"),
    ],
)
def test_what_cannot_pass_fails_at_once(client, own_root, environment, error, words):
    name = f"hopeless-{words.lower()}"
    with pytest.raises(error, match=words):
        flow.train_here(config(name, environment), own_root)
    [flow_run] = flow_runs(client, name)
    assert flow_run.state.name == "Failed"
    assert words in flow_run.state.message
    tasks = eventually(lambda: [task for task in client.read_task_runs() if task.flow_run_id == flow_run.id])
    assert [task.run_count for task in tasks] == [1] * len(tasks)


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGTERM, "Preempted"), pytest.param(signal.SIGINT, "Stopped", marks=pytest.mark.nightly)],
)
def test_a_signal_ends_the_flow_with_a_version_and_it_goes_on(client, own_root, number, name):
    Trainer(config("undisturbed", total_timesteps=6000)).train()

    def send():
        run = own_root / "runs" / f"signalled-{name.lower()}" / "checkpoints"
        while not any(run.glob("v*")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    signalled = f"signalled-{name.lower()}"
    training = flow.train_here(config(signalled, total_timesteps=6000), own_root)
    assert training.statistics.state.value == "stopped"
    [flow_run] = flow_runs(client, signalled)
    assert (flow_run.state.type.value, flow_run.state.name) == ("CANCELLED", name)
    assert f"rltrack resume {signalled}" in flow_run.state.message
    training = flow.train_here(config(signalled, total_timesteps=6000), own_root)
    assert training.statistics.state.value == "completed"
    same("undisturbed", signalled)


def test_a_flow_is_paused_continued_and_stopped_through_its_folder(client, own_root, monkeypatch):
    monkeypatch.setattr(steering, "EVERY_SECONDS", 0.0)
    said = []

    def steer_it():
        while not any((own_root / "runs" / "steered" / "checkpoints").glob("v*")):
            time.sleep(0.01)
        said.extend(steer(Root(own_root).find("steered"), verb, 60.0) for verb in ("pause", "continue", "stop"))

    thread = threading.Thread(target=steer_it, daemon=True)
    thread.start()
    training = flow.train_here(config("steered", total_timesteps=10**7), own_root)
    thread.join()
    assert training.statistics.state.value == "stopped"
    assert [text.split()[0] for text in said] == ["paused", "continues", "stopped"]
    [flow_run] = flow_runs(client, "steered")
    assert (flow_run.state.type.value, flow_run.state.name) == ("CANCELLED", "Stopped"), "no automation brings it back"


def test_a_run_that_is_being_trained_is_left_alone(client, own_root):
    run = Root().create("taken", "")
    with run.lock(), pytest.raises(RunBusy, match="being trained by process"):
        flow.train_here(config("taken"), own_root)
    [flow_run] = flow_runs(client, "taken")
    assert flow_run.state.name == "Busy"


def test_a_dead_flow_run_of_the_same_run_is_marked_and_a_strangers_is_not(client, own_root):
    """Which are ours is told by root and run; a name alone says nothing."""
    from prefect import flow as prefect_flow
    from prefect.states import Running

    from rltrack.flows.installation import flow_run_tags

    @prefect_flow(name="payroll")
    def payroll():
        pass

    ours = flow_run_tags(Root(), "again")
    elsewhere = flow_run_tags(Root(own_root / "another-root"), "again")
    parameters = {"config": config("again").to_mapping()}

    def running(of, tags, **more):
        return client.create_flow_run(of, name="again", tags=tags, state=Running(), **more).id

    dead = running(flow.train, ours, parameters=parameters)
    strangers = [running(payroll, []), running(flow.train, [], parameters=parameters),
                 running(flow.train, elsewhere, parameters=parameters), running(payroll, ours[:1])]  # fmt: skip
    flow.train_here(config("again"), own_root)
    state = client.read_flow_run(dead).state
    assert (state.type.value, state.name) == ("CRASHED", "Superseded")
    assert [client.read_flow_run(stranger).state.name for stranger in strangers] == ["Running"] * len(strangers)
    [finished] = [run for run in flow_runs(client, "again") if run.state.name == "Completed"]
    assert set(ours) <= set(finished.tags)


def test_a_run_without_progress_is_given_up(client, own_root):
    run = Root().create("stuck", "")
    Trainer(config("stuck")).prepare()  # an attempt that dies at its beginning leaves nothing else
    records = list(read_journal(run.journal_file))
    [attempt] = [record for record in records if record["kind"] == "attempt"]
    with open(run.journal_file, "ab") as journal:
        for number in range(len(records), len(records) + training_module.MAX_ATTEMPTS_WITHOUT_PROGRESS):
            journal.write(numbered_line(encode_record(attempt), number + 1))
    with pytest.raises(RltrackError, match="no longer restarted automatically"):
        training_module.check_attempts(run)


def test_modules_from_the_network_need_permission(monkeypatch):
    named = config("foreign", {"id": "tests.support.flaky:Flaky-v0"})
    with pytest.raises(ConfigurationError, match=r"tests\.support\.flaky"):
        training_module.check_parameters(named)
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "other, tests.support")
    training_module.check_parameters(named)
    training_module.check_parameters(config("own"))


def test_what_can_pass():
    for error in (CheckpointFailed("x"), OSError("x"), RuntimeError("a simulator crashed")):
        assert retries.is_transient(error)
    for error in (ConfigurationError("x"), TrainingDiverged("x"), MissingExtra("x"), ImportError("x"), RunBusy("x")):
        assert not retries.is_transient(error)


def test_prefect_leaves_pythons_random_stream_to_training(prefect_api):
    import random

    from websockets.asyncio import connection

    assert connection.random is not random
    before = random.getstate()
    connection.random.getrandbits(32)
    assert random.getstate() == before


def test_names():
    unnamed = config("x").model_copy(update={"name": None})
    assert flow.run_name(config("mine"), None, "12345678-9") == "mine"
    assert flow.run_name(config("mine"), "other", "12345678-9") == "other"
    assert flow.run_name(unnamed, None, "12345678-9") == "ppo-cartpole-v1-s3-12345678"
    assert artifact_key("My_Run.v2", "progress") == "my-run-v2-progress"


def test_the_file_of_deployments_is_installed():
    from rltrack.flows.deployments import prefect_file

    assert isinstance(prefect_file(), Path)
    assert prefect_file().is_file()
