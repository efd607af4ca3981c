"""A stored policy acts exactly as the model it came from, for each algorithm and kind of observation; loading runs no pickle."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from rltrack.agents import POLICY_PARTS, build_agent, evaluation_environments
from rltrack.agents.exported_policy import DESCRIPTION, ExportedPolicy, find_class, write_policy
from rltrack.agents.policy_description import describe_policy
from rltrack.benchmarks.resume import CASES
from rltrack.config import TrainingConfig
from rltrack.evaluation.episodes import play_episodes
from tests.support.agents import NullObserver
from tests.support.policies import OwnExtractor

KINDS = (
    "ppo-cartpole", "ppo-cartpole-norm-4", "ppo-multiobs", "ppo-frozenlake", "ppo-pendulum-gsde", "a2c-pendulum-norm-gsde",
    "dqn-cartpole", "dqn-her-bitflip", "sac-pendulum-norm-3", "sac-her-bitflip-info", "td3-pendulum", "ddpg-pendulum-ou",
    "qrdqn-cartpole", "tqc-pendulum", "crossq-pendulum", "trpo-cartpole-2", "recurrentppo-cartpole-2", "maskableppo-invalid",
    "ars-cartpole", "ppo-pong-cnn-stack4", "dqn-breakout-cnn-stack4", "ppo-halfcheetah-norm-2",
)  # fmt: skip

QUICK = ("ppo-cartpole-norm-4", "ppo-multiobs", "dqn-cartpole")
SLOW = ("sac-pendulum-norm-3", "ppo-pendulum-gsde", "recurrentppo-cartpole-2", "maskableppo-invalid", "ars-cartpole",
        "dqn-breakout-cnn-stack4")  # fmt: skip
"""In every run; the other kinds are nightly."""


def exported(config: TrainingConfig, folder):
    """A little training, so that statistics are not those of the beginning; the agent, and its policy from files."""
    agent, env = build_agent(config)
    agent.allow_probe(False)
    agent.bind(env, config.seed)
    agent.advance(NullObserver())
    state = agent.capture_parts(POLICY_PARTS)
    description = json.loads(json.dumps(describe_policy(agent.model)))
    assert "reason" not in description, description
    write_policy(folder, description, state["policy"]["policy"], state.get("normalization"))
    return agent, ExportedPolicy.load(folder)


def _marks(name):
    if name in QUICK:
        return ()
    return pytest.mark.slow if name in SLOW else pytest.mark.nightly


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in KINDS])
def test_acts_as_the_model(name, tmp_path):
    [case] = [case for case in CASES if case.name == name]
    if case.missing is not None:
        pytest.skip(f"{case.missing} is not installed")
    config = TrainingConfig.from_mapping(dict(case.config))
    agent, policy = exported(config, tmp_path)
    seeds = [5, 6]
    ours = evaluation_environments(config, policy.policy, 2)
    theirs = agent.make_evaluation_env(None, 2)
    played = play_episodes(policy, ours, seeds)
    expected = play_episodes(agent, theirs, seeds)
    agent.release()
    ours.close()
    theirs.close()
    assert played.returns == expected.returns
    assert played.lengths == expected.lengths


def test_normalised_observations_are_those_of_sb3(tmp_path):
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0), clip_obs=1.5)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1).learn(128)
    rms = env.obs_rms
    normalization = {"observations": {"mean": rms.mean, "var": rms.var, "count": rms.count}}
    write_policy(
        tmp_path, describe_policy(model), {k: v.numpy() for k, v in model.policy.state_dict().items()}, normalization
    )
    policy = ExportedPolicy.load(tmp_path)
    raw = np.random.default_rng(0).normal(0, 3, (50, 3)).astype(np.float32)
    assert np.array_equal(policy._normalize(raw), env.normalize_obs(raw))
    assert np.array_equal(policy.predict(raw)[0], model.predict(env.normalize_obs(raw), deterministic=True)[0])


def test_a_class_from_elsewhere_runs_only_if_allowed(monkeypatch):
    path = "tests.support.policies.OwnExtractor"
    with pytest.raises(ValueError, match="RLTRACK_ALLOWED_MODULES=tests"):
        find_class(path)
    assert find_class(path, ["tests.support"]).__name__ == "OwnExtractor"
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "other, tests.support.policies")
    assert find_class(path).__name__ == "OwnExtractor"
    with pytest.raises(ValueError, match="torchevil"):
        find_class("torchevil.Thing")
    with pytest.raises(ValueError, match=r"RLTRACK_ALLOWED_MODULES=torch\.nn\.modules\.linear "):
        find_class("torch.nn.modules.linear.Linear")


def test_what_cannot_be_stored_says_why_and_how_to_go_on():
    import gymnasium as gym
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecCheckNan, VecFrameStack, VecNormalize
    from torch import nn

    stacked = PPO("MlpPolicy", VecFrameStack(VecNormalize(make_vec_env("CartPole-v1")), 2), n_steps=8, batch_size=8)
    assert "FrameStackObservation" in describe_policy(stacked)["reason"]
    odd = PPO("MlpPolicy", VecCheckNan(make_vec_env("CartPole-v1")), n_steps=8, batch_size=8)
    assert "VecCheckNan" in describe_policy(odd)["reason"]

    class Local(nn.ReLU):
        pass

    for inner in (Local, OwnExtractor.Inner):
        local = PPO(
            "MlpPolicy", gym.make("CartPole-v1"), n_steps=8, batch_size=8, policy_kwargs={"activation_fn": inner}
        )
        assert "top level of a module" in describe_policy(local)["reason"]
    endless = PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=8, batch_size=8)
    endless.policy_kwargs = {"log_std_init": float("inf")}  # JSON has none
    assert "plain data" in describe_policy(endless)["reason"]


def test_reading_runs_no_pickle(tmp_path, monkeypatch):
    [case] = [case for case in CASES if case.name == "ppo-cartpole"]
    exported(TrainingConfig.from_mapping(dict(case.config)), tmp_path)[0].release()

    def refuse(*arguments, **keywords):
        raise AssertionError("a pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    ExportedPolicy.load(tmp_path)
    newer = json.loads((tmp_path / DESCRIPTION).read_text()) | {"format": 99}
    (tmp_path / DESCRIPTION).write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="Install a newer rltrack"):
        ExportedPolicy.load(tmp_path)
