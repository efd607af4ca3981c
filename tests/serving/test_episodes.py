"""Whole episodes over HTTP: the caller carries a recurrent state, or sends masks; every action is that of the live model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from starlette.testclient import TestClient

import rltrack
from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.registry.models import POLICY, policy_of, write_model
from rltrack.serving.application import Limits, make_application
from rltrack.serving.following import Served
from tests.exchange.test_sb3_files import MASKED, train

pytestmark = pytest.mark.slow


@pytest.fixture
def serve(own_root, tmp_path):
    """Trains, and returns the live model and what asks the served policy."""

    def begin(algorithm):
        run = train(own_root, algorithm, "run")
        write_model(policy_of(run, "last"), tmp_path / "model")
        policy = ExportedPolicy.load(tmp_path / "model" / "artifacts" / POLICY)
        client = TestClient(make_application(SimpleNamespace(served=Served(1, "run@last", policy, 0.0)), Limits()))

        def ask(**inputs):
            plain = {key: np.asarray(value).tolist() for key, value in inputs.items()}
            body = json.dumps({"inputs": plain})
            answer = client.post("/invocations", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 200, answer.text
            return answer.json()["predictions"]

        return rltrack.load_agent("run", "last", root=own_root), ask

    return begin


def test_a_recurrent_policy(serve):
    model, ask = serve("RecurrentPPO")
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=3)
    state, answer, start, ends = None, {}, True, 0
    for _ in range(200):
        carried = {} if start else {"state": answer["state"]}
        answer = ask(observation=observation, **carried)
        action, state = model.predict(observation, state=state, episode_start=np.array([start]), deterministic=True)
        assert answer["action"] == action
        assert np.array_equal(np.array(answer["state"], np.float32), np.stack(state)[:, :, 0])
        observation, _, terminated, truncated, _ = env.step(int(action))
        start = terminated or truncated
        if start:
            observation, _ = env.reset()
            ends += 1
            if ends == 2:
                break
    assert ends == 2
    both = ask(observation=[observation, observation], state=[answer["state"]] * 2, episode_start=[True, False])
    assert len(both["action"]) == 2


def test_a_policy_with_masks(serve):
    model, ask = serve("MaskablePPO")
    __import__(MASKED.partition(":")[0])
    env = gym.make(MASKED.partition(":")[2])
    observation, _ = env.reset(seed=3)
    for _ in range(500):
        masks = env.unwrapped.action_masks()
        action, _ = model.predict(observation, action_masks=masks, deterministic=True)
        assert ask(observation=observation, action_masks=masks) == action
        observation, _, terminated, truncated, _ = env.step(int(action))
        if terminated or truncated:
            break
    else:
        raise AssertionError("the episode did not end")
