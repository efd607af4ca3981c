"""A policy counts as storable only if, built from its description, it acts as the live one; looking changes nothing."""

from __future__ import annotations

import json
import random
from collections import OrderedDict

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from rltrack.agents import policy_spaces
from rltrack.agents.exported_policy import ExportedPolicy, space_of, write_policy
from rltrack.agents.policy_check import checked_description, difference_from_live
from rltrack.agents.policy_description import describe_policy
from rltrack.registry.models import as_current, signature_of
from tests.support.policies import BOX, ForgetfulExtractor, OddEnv, OwnExtractor, image_and_vector

SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "seed": 0}


def stored(model, folder, normalization=None):
    weights = {key: value.numpy() for key, value in model.policy.state_dict().items()}
    write_policy(folder, json.loads(json.dumps(checked_description(model))), weights, normalization)
    return ExportedPolicy.load(folder)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"z": BOX, "a": BOX}),
        spaces.Dict(z=BOX, a=BOX),
        spaces.Dict(OrderedDict(z=BOX, a=BOX)),
        spaces.Dict([("z", BOX), ("a", BOX)]),
        spaces.Dict([("mean", BOX), ("inf", BOX)]),
    ],
    ids=["mapping", "keywords", "ordered", "pairs", "odd keys"],
)
def test_a_dictionary_acts_as_trained_in_whatever_order(space, tmp_path):
    model = PPO("MultiInputPolicy", OddEnv(space), **SMALL, learning_rate=0.05).learn(64)
    policy = stored(model, tmp_path)
    assert list(policy.observation_space) == list(space)
    generator = np.random.default_rng(0)
    observations = {key: generator.normal(size=(500, 3)).astype(np.float32) for key in sorted(space)}
    assert np.array_equal(policy.predict(observations)[0], model.predict(observations, deterministic=True)[0])


def test_a_description_of_format_1_acts_as_trained_too(tmp_path):
    """Its keys stand in the right order; only the reader of that time sorted them."""
    model = PPO("MultiInputPolicy", OddEnv(spaces.Dict(z=BOX, a=BOX)), **SMALL, learning_rate=0.05).learn(64)
    description = json.loads(json.dumps(describe_policy(model)))
    for name in ("observation_space", "input_space"):
        description[name]["spaces"] = dict(description[name]["spaces"])
    del description["action_space"]["dtype"]
    weights = {key: value.numpy() for key, value in model.policy.state_dict().items()}
    write_policy(tmp_path, description | {"format": 1}, weights, None)
    assert difference_from_live(model, ExportedPolicy.load(tmp_path)) is None
    assert as_current(description | {"format": 1})["input_space"] == describe_policy(model)["input_space"]


def test_a_reader_that_sorted_the_keys_would_be_noticed(monkeypatch):
    model = PPO("MultiInputPolicy", OddEnv(spaces.Dict(z=BOX, a=BOX)), **SMALL)
    assert "reason" not in checked_description(model)
    original = policy_spaces._subspaces
    monkeypatch.setattr(policy_spaces, "_subspaces", lambda spaces, depth: dict(original(spaces, depth)))
    monkeypatch.setattr(policy_spaces, "_alike", lambda one, other: True)
    assert "does not act as in training: on 32 observations" in checked_description(model)["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stack"), [(DummyVecEnv, False), (DummyVecEnv, True), (SubprocVecEnv, False)])
def test_a_normalised_image_keeps_its_own_dtype(kind, stack, tmp_path):
    inner = kind([lambda: OddEnv(image_and_vector())] * 2)
    env = VecNormalize(VecFrameStack(inner, 2) if stack else inner)
    if kind is DummyVecEnv and not stack:  # SB3 has overwritten the space of the environment itself
        assert inner.observation_space["image"].dtype == np.float32
    model = PPO("MultiInputPolicy", env, n_steps=4, batch_size=4, n_epochs=1, seed=0)
    try:
        before = checked_description(model)
        model.learn(8)
        description = checked_description(model)
        assert before == description
        assert "reason" not in description, description
        channels = 6 if stack else 3
        image = space_of(description["input_space"])["image"]
        assert image == spaces.Box(0, 255, (36, 36, channels), np.uint8)
        names = {spec.name: (spec.type, spec.shape) for spec in signature_of(description).inputs.inputs}
        assert names["image"] == (np.dtype(np.uint8), (-1, 36, 36, channels))
        statistics = {key: {"mean": rms.mean, "var": rms.var} for key, rms in env.obs_rms.items()}
        policy = stored(model, tmp_path, {"observations": statistics})
        assert difference_from_live(model, policy) is None
        raw = env.get_original_obs()
        assert raw["image"].dtype == np.uint8
        expected = model.predict(env.normalize_obs(raw), deterministic=True)[0]
        assert np.array_equal(policy.predict(raw)[0], expected)
    finally:
        env.close()


def test_an_image_that_is_not_normalised_beside_a_vector_that_is(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: OddEnv(image_and_vector())]), norm_obs_keys=["vector"])
    model = PPO("MultiInputPolicy", env, n_steps=4, batch_size=4, n_epochs=1, seed=0)
    description = checked_description(model)
    assert "reason" not in description
    assert space_of(description["input_space"])["image"] == spaces.Box(0, 255, (36, 36, 3), np.uint8)
    assert space_of(description["observation_space"])["image"].shape == (3, 36, 36)


def test_a_float_box_with_the_bounds_of_normalisation_stays_one():
    space = spaces.Dict([("map", spaces.Box(-10, 10, (4, 4, 2), np.float32)), ("x", BOX)])
    model = PPO("MultiInputPolicy", VecNormalize(DummyVecEnv([lambda: OddEnv(space)])), **SMALL)
    assert space_of(checked_description(model)["input_space"]) == space


def test_what_state_dict_does_not_hold_is_not_stored():
    kwargs = {"features_extractor_class": ForgetfulExtractor}
    model = PPO("MlpPolicy", OddEnv(spaces.Box(-9, 9, (3,), np.float32)), **SMALL, policy_kwargs=kwargs)
    assert "reason" not in describe_policy(model)
    reason = checked_description(model)["reason"]
    assert "does not act as in training" in reason
    assert "gives other values" in reason
    assert "state_dict()" in reason


def test_the_authors_own_classes_need_no_permission_where_they_train(monkeypatch):
    monkeypatch.delenv("RLTRACK_ALLOWED_MODULES", raising=False)
    model = PPO("MlpPolicy", OddEnv(BOX), **SMALL, policy_kwargs={"features_extractor_class": OwnExtractor})
    description = checked_description(model)
    assert description["policy_kwargs"]["features_extractor_class"] == {"$class": "tests.support.policies.OwnExtractor"}
    with pytest.raises(ValueError, match="RLTRACK_ALLOWED_MODULES"):
        ExportedPolicy(description, {})


@pytest.mark.parametrize(
    "make",
    [
        lambda: PPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 2)), **SMALL),
        lambda: SAC("MlpPolicy", "Pendulum-v1", seed=0, buffer_size=100),
        lambda: DQN("MlpPolicy", "CartPole-v1", seed=0, buffer_size=100),
    ],
)
def test_looking_changes_nothing(make):
    model = make()
    model.env.reset()
    model.policy.train()
    modes = [module.training for module in model.policy.modules()]
    rms = getattr(model.env, "obs_rms", None)
    statistics = None if rms is None else (rms.mean.copy(), rms.var.copy(), rms.count)
    threads = torch.get_num_threads()
    streams = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert "reason" not in checked_description(model)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == streams
    assert torch.get_num_threads() == threads
    assert [module.training for module in model.policy.modules()] == modes
    if rms is not None:
        assert model.env.obs_rms is rms
        assert np.array_equal(rms.mean, statistics[0])
        assert np.array_equal(rms.var, statistics[1])
        assert rms.count == statistics[2]


@pytest.mark.parametrize("name", ["RecurrentPPO", "MaskablePPO", "QRDQN", "TQC", "ARS", "CrossQ", "TRPO"])
def test_other_algorithms_are_compared_too(name):
    contrib = pytest.importorskip("sb3_contrib")
    env = "Pendulum-v1" if name in ("TQC", "CrossQ") else "CartPole-v1"
    if name == "MaskablePPO":
        import gymnasium as gym

        env = gym.make("rltrack.benchmarks.environments:InvalidAction-v0")
    more = {"buffer_size": 100} if name in ("QRDQN", "TQC", "CrossQ") else {}
    more |= {"policy_kwargs": {"lstm_hidden_size": 8}} if name == "RecurrentPPO" else {}
    model = getattr(contrib, name)("MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy", env, seed=0, **more)
    description = checked_description(model)
    assert "reason" not in description, description
    assert description["recurrent"] == (name == "RecurrentPPO")
    assert description["masked"] == (name == "MaskablePPO")
