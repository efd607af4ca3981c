"""The configuration that trains as a script does."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.atari_wrappers import ClipRewardEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecCheckNan, VecEnvWrapper, VecFrameStack, VecNormalize

from rltrack import TrainingLoop
from rltrack.agents.devices import torch_threads
from rltrack.agents.factory import build
from rltrack.agents.reconstruction import reconstruct
from rltrack.agents.sb3 import SB3Agent
from rltrack.config import TrainingConfig

PROJECT = Path(__file__).resolve().parents[3] / "examples" / "own_project"


@pytest.fixture
def _own_project(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "tank":
            del sys.modules[name]


def found(model, **options):
    """What was found out, and a model that was built from it is the same."""
    return reconstruct(model, **options)


def halved(remaining):
    return 5e-4 * remaining


@pytest.mark.parametrize(
    ("kind", "env", "options", "hyperparameters"),
    [
        (PPO, "CartPole-v1", {}, {}),
        (PPO, "CartPole-v1", {"n_steps": 64, "clip_range_vf": 0.5}, {"n_steps": 64, "clip_range_vf": 0.5}),
        (PPO, "CartPole-v1", {"learning_rate": halved}, {"learning_rate": f"{__name__}:halved"}),
        (PPO, "CartPole-v1", {"clip_range": LinearSchedule(0.3, 0.1, 0.5)},
         {"clip_range": {"stable_baselines3.common.utils:LinearSchedule": {"start": 0.3, "end": 0.1, "end_fraction": 0.5}}}),
        (A2C, "CartPole-v1", {"policy_kwargs": {"net_arch": [8]}, "use_rms_prop": False},
         {"policy_kwargs": {"net_arch": [8]}, "use_rms_prop": False}),
        (DQN, "CartPole-v1", {"buffer_size": 100, "train_freq": (2, "episode")},
         {"buffer_size": 100, "train_freq": [2, "episode"]}),
        (SAC, "Pendulum-v1", {"buffer_size": 100, "ent_coef": "auto_0.1"}, {"buffer_size": 100, "ent_coef": "auto_0.1"}),
        (TD3, "Pendulum-v1", {"buffer_size": 100, "action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))},
         {"buffer_size": 100, "action_noise": {"normal": 0.1}}),
        (DDPG, "Pendulum-v1", {"buffer_size": 100}, {"buffer_size": 100, "policy_kwargs": {"n_critics": 1}}),
    ],
)  # fmt: skip
def test_the_agents_section(kind, env, options, hyperparameters):
    given = found(kind("MlpPolicy", env, seed=1, **options))
    assert given.missing == []
    assert given.agent == {
        "algorithm": kind.__name__,
        "policy": "MlpPolicy",
        "hyperparameters": hyperparameters,
        "device": "cpu",
    }
    assert given.environment == {"id": env, "n_envs": 1}


@pytest.mark.usefixtures("_own_project")
def test_an_environment_of_ones_own_with_its_stack():
    from tank.env import make_tank
    from tank.extractor import Difference

    env = VecFrameStack(
        VecNormalize(make_vec_env(make_tank, n_envs=3, env_kwargs={"leak": 0.25}), norm_reward=False, gamma=0.5), 2
    )
    policy_kwargs = {"features_extractor_class": Difference}
    given = found(PPO("MlpPolicy", env, policy_kwargs=policy_kwargs))
    assert given.missing == []
    assert given.agent["hyperparameters"] == {
        "policy_kwargs": {"features_extractor_class": "tank.extractor:Difference"}
    }
    assert given.environment == {
        "id": "tank.env:TankEnv", "kwargs": {"leak": 0.25}, "n_envs": 3, "frame_stack": 2,
        "wrappers": ["tank.wrappers:SlowSensor"], "wrappers_inside_monitor": True,
        "normalize": {"norm_obs": True, "norm_reward": False, "clip_obs": 10.0, "clip_reward": 10.0, "gamma": 0.5, "epsilon": 1e-8},
    }  # fmt: skip
    assert found(PPO("MlpPolicy", env), make_env="tank.env:make_tank").environment["id"] == "tank.env:make_tank"


def test_gymnasiums_specification_with_arguments_wrappers_and_another_limit():
    env = gym.wrappers.RescaleAction(gym.make("Pendulum-v1", g=9.0, max_episode_steps=50), -1, 1)
    given = found(PPO("MlpPolicy", env))
    assert given.missing == []
    assert given.environment == {
        "id": "Pendulum-v1", "kwargs": {"g": 9.0, "max_episode_steps": 50}, "n_envs": 1, "wrappers_inside_monitor": True,
        "wrappers": [
            {"gymnasium.wrappers.transform_action:RescaleAction": {"min_action": -1, "max_action": 1}},
        ],
    }  # fmt: skip


class Hidden(gym.Env):
    """Keeps its argument where nobody finds it."""

    def __init__(self, size=2):
        self.observation_space = gym.spaces.Box(-1, 1, (size,))
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}


class Doubled(gym.RewardWrapper):
    """Keeps its argument, and records none with Gymnasium; SB3's Atari wrappers are like that."""

    def __init__(self, env, factor=2.0):
        super().__init__(env)
        self.factor = factor

    def reward(self, reward):
        return self.factor * reward


class OwnVecWrapper(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


def test_wrappers_outside_monitor_which_record_no_arguments(tmp_path):
    """As `make_vec_env(wrapper_class=…)` and `make_atari_env` put them; what Monitor counts is what evaluations count too."""
    env = VecCheckNan(make_vec_env("CartPole-v1", wrapper_class=Doubled, wrapper_kwargs={"factor": 3.0}))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1)
    given = found(model)
    assert given.missing == []
    assert given.environment == {
        "id": "CartPole-v1", "n_envs": 1, "wrappers": [{f"{__name__}:Doubled": {"factor": 3.0}}], "wrappers_inside_monitor": False,
    }  # fmt: skip
    loop = TrainingLoop(model, total_timesteps=32, eval_freq=32, eval_episodes=2, root=tmp_path, name="raw", sinks=[])
    statistics = loop.run()
    (evaluation,) = statistics.evaluations
    assert evaluation.returns == tuple(map(float, evaluation.lengths)), "the environment's own rewards, one each step"
    assert statistics.episode_returns == list(map(float, statistics.episode_lengths))


def test_what_cannot_be_found_out_is_named_with_what_gives_it():
    class Local(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
        reset, step = Hidden.reset, Hidden.step

    cases = [
        (
            PPO("MlpPolicy", Local()),
            r"the environment .*Local, which is defined in the script.*make_env='package\.module:Name'",
        ),
        (PPO("MlpPolicy", Hidden(3)), r"the argument size of the environment Hidden.*pass make_env="),
        (PPO("MlpPolicy", OwnVecWrapper(make_vec_env("CartPole-v1"))), "the vectorised wrapper OwnVecWrapper"),
        (
            PPO("MlpPolicy", ClipRewardEnv(Monitor(ClipRewardEnv(gym.make("CartPole-v1"))))),
            "Monitor between two wrappers; pass make_env=",
        ),
    ]
    for model, message in cases:
        [line] = found(model).missing
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(line)
    given = found(PPO("MlpPolicy", "CartPole-v1", learning_rate=lambda left: left))
    [line] = given.script_only
    assert "learning_rate: " in line
    assert "<lambda> has no name" in line
    assert given.is_complete, "acting needs no schedule"
    given = found(PPO("MlpPolicy", Hidden(3)), make_env=f"{__name__}:Hidden")
    assert "an environment that was built again" in given.missing[0], "built with another size: it is noticed"


def test_first_weights_do_not_depend_on_the_scripts_torch_threads():
    with torch_threads(2):  # as a script has them on two cores; other last bits than on one
        model = PPO("MlpPolicy", "CartPole-v1", seed=3)
        agent = SB3Agent(model)
        agent.bind(model.env, 3)
        agent.release()
    assert agent.reconstruction is not None
    section = agent.reconstruction.agent
    assert section["build_threads"] == 2
    data = {"agent": section, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 1}, "seed": 3}
    built, env = build(TrainingConfig.from_mapping(data))
    ours, theirs = built.model.policy.state_dict(), model.policy.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    env.close()


def test_why_no_second_model_could_be_built_ends_without_a_full_stop():
    [missing] = found(PPO("MlpPolicy", "CartPole-v1"), make_env="tests.nowhere:make").missing
    assert "could not be built" in missing
    assert not missing.endswith(".")
