"""Champions loaded and served by MLflow itself: its answers are SB3's own deterministic actions."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import rltrack
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.models import policy_of, write_model
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.training.trainer import Trainer
from tests.support.servers import free_port

ON = {"n_steps": 64, "batch_size": 64, "n_epochs": 2}
CASES = {
    "cartpole": {"agent": {"algorithm": "PPO", "hyperparameters": ON}, "environment": {"id": "CartPole-v1"}},
    "pendulum": {
        "agent": {"algorithm": "PPO", "hyperparameters": ON},
        "environment": {"id": "Pendulum-v1", "normalize": True},
    },
    "dictionary": {
        "agent": {"algorithm": "PPO", "policy": "MultiInputPolicy", "hyperparameters": ON},
        "environment": {"id": "rltrack.benchmarks.environments:MultiObs-v0"},
    },
}


def trained(root, name: str, config):
    trainer = Trainer(
        {"seed": 1, "name": name, "training": {"total_timesteps": 128, "eval_freq": 128}, "evaluation": {"episodes": 2},
         "tracking": {"video": False}, **config},
        root=root,
    )  # fmt: skip
    trainer.loop.delivers = False
    trainer.train()
    return Root(root).find(name)


def as_sb3(run, observation):
    """What SB3's own model does with a single raw observation."""
    model = as_sb3.models.setdefault(run.path, rltrack.load_agent(run.name, root=run.root))
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        observation = normalize.normalize_obs(observation)
    return model.predict(observation, deterministic=True)[0]


as_sb3.models = {}


def batch(observation):
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


def plain(observation):
    if isinstance(observation, dict):
        return {key: value.tolist() for key, value in observation.items()}
    return observation.tolist()


@contextlib.contextmanager
def served(uri: str, model: str, folder):
    """`mlflow models serve`, where no pickle may be read and rltrack cannot be imported."""
    port = free_port()
    (folder / "rltrack").mkdir(parents=True)
    (folder / "rltrack" / "__init__.py").write_text("raise ImportError('a served model needs no rltrack')\n")
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with open(folder / "serve.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{model}@champion", "--env-manager", "local",
             "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ping", timeout=2):
                break
            assert process.poll() is None, (folder / "serve.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "serve.log").read_text()[-3000:]
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, inputs, **more):
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps({"inputs": inputs, **more}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dictionary", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("pendulum", "cartpole"))]
)
def test_a_whole_episode_over_http(name, own_root, tmp_path):
    run = trained(own_root, f"served-{name}", CASES[name])
    assert promote(run, name, gate=Gate(episodes=30)).promoted
    env = gym.make(CASES[name]["environment"]["id"])
    with served(ModelRegistry(Root(own_root)).uri, name, tmp_path / "elsewhere") as address:
        observation, _ = env.reset(seed=11)
        steps = 0
        while True:
            [action] = ask(address, plain(batch(observation)))
            expected = as_sb3(run, observation)
            assert np.array_equal(np.asarray(action, dtype=np.asarray(expected).dtype), expected), steps
            observation, _, terminated, truncated, _ = env.step(expected)
            steps += 1
            if (terminated or truncated) and steps >= (30 if name == "dictionary" else 150):
                break
            if terminated or truncated:
                observation, _ = env.reset()
        many = {key: value * 3 for key, value in plain(batch(observation)).items()} if name == "dictionary" else (
            plain(batch(observation)) * 3
        )  # fmt: skip
        assert len(ask(address, many, params={"deterministic": False})) == 3
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, [[1.0, 2.0]])
        assert 400 <= refused.value.code < 500


def load(run, folder):
    import mlflow

    write_model(policy_of(run, "last"), folder)
    return mlflow.pyfunc.load_model(str(folder))


@pytest.mark.slow
def test_a_recurrent_policy_gives_its_state_to_the_caller(own_root, tmp_path, monkeypatch):
    pytest.importorskip("sb3_contrib")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    small = {**ON, "policy_kwargs": {"lstm_hidden_size": 8}}
    agent = {"algorithm": "RecurrentPPO", "policy": "MlpLstmPolicy", "hyperparameters": small}
    run = trained(own_root, "recurrent", {"agent": agent, "environment": {"id": "CartPole-v1"}})
    model, own = load(run, tmp_path / "model"), rltrack.load_agent("recurrent", "last", root=own_root)
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=3)
    state, carried, start = None, np.zeros((1, 2, 1, 8), np.float32), True
    for _ in range(30):
        answer = model.predict({"observation": observation[None], "episode_start": np.array([start]), "state": carried})
        carried = answer["state"]
        action, state = own.predict(observation, state=state, episode_start=np.array([start]), deterministic=True)
        assert answer["action"] == action
        observation, _, terminated, truncated, _ = env.step(int(action))
        start = terminated or truncated
        if start:
            observation, _ = env.reset()


@pytest.mark.slow
def test_a_policy_with_masks_takes_them(own_root, tmp_path, monkeypatch):
    pytest.importorskip("sb3_contrib")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    agent = {"algorithm": "MaskablePPO", "hyperparameters": ON}
    run = trained(
        own_root, "masked", {"agent": agent, "environment": {"id": "rltrack.benchmarks.environments:InvalidAction-v0"}}
    )
    model = load(run, tmp_path / "model")
    observation = np.arange(20)[:, None] if model.metadata.signature.inputs.inputs[0].shape[1:] else np.arange(20)
    dtype = model.metadata.signature.inputs.inputs[0].type
    for allowed in (3, 17):
        masks = np.zeros((20, 20), dtype=bool)
        masks[:, allowed] = True
        answer = model.predict({"observation": observation.astype(dtype), "action_masks": masks})
        assert set(np.asarray(answer).tolist()) == {allowed}


@pytest.mark.slow
def test_the_best_and_the_final_policy_are_stored_once(own_root):
    run = trained(own_root, "stored", {**CASES["cartpole"], "training": {"total_timesteps": 256, "eval_freq": 100}})
    promote(run, "one", gate=Gate(episodes=30))
    registry = ModelRegistry(Root(own_root))
    experiment = registry.client.get_experiment_by_name("rltrack").experiment_id
    models = registry.client.search_logged_models([experiment])
    names = [model.name for model in models]
    assert "stored-best" in names
    assert len(names) == len(set(names)) <= 2
    [best] = [model for model in models if model.name == "stored-best"]
    assert {metric.key for metric in best.metrics} >= {"eval/mean_reward", "eval/iqm_reward"}
    assert registry.champion("one").model_id == best.model_id
    assert json.loads(best.tags["mlflow.modelVersions"]) == [{"name": "one", "version": 1}]


@pytest.mark.slow
def test_a_server_that_knows_no_models_gets_everything_else(own_root, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    from rltrack.tracking.bookmark import read_bookmark
    from rltrack.tracking.shipper import EXIT_DELIVERED, ship_run

    def too_old(*arguments, **keywords):
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr("rltrack.registry.models.store_policy", too_old)
    run = trained(own_root, "old", CASES["cartpole"])
    assert ship_run(run, patience=0.0) == EXIT_DELIVERED
    kept = ModelRegistry(Root(own_root)).client.get_run(read_bookmark(run).mlflow.state["run_id"])
    assert kept.info.status == "FINISHED"
    assert "too old" in kept.data.tags["rltrack.model"]
