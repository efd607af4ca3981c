"""What `auto` chooses, and environments that crash alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from rltrack.agents.devices import choose_device
from rltrack.agents.environments import make_vec_env_from
from rltrack.agents.restarting import RestartingSubprocVecEnv
from rltrack.agents.vectorization import choose_vectorization
from rltrack.config import EnvironmentConfig, TrainingConfig
from rltrack.console.runs import run_details
from rltrack.errors import ConfigurationError
from rltrack.identity import identity
from rltrack.runs import Root
from rltrack.tracking.report import RunReport
from rltrack.training.trainer import Trainer


class Slow(gym.Wrapper):
    """A simulator whose step takes its time; it sleeps, so that two of them fit on one core."""

    def step(self, action):
        time.sleep(0.003)
        return self.env.step(action)


class Dies(gym.Wrapper):
    """Ends its process in the middle of an episode, once it has taken 70 steps; evaluation, in our own process, is spared."""

    def __init__(self, env, how="exit", after=70):
        super().__init__(env)
        self.how, self.left = how, after

    def step(self, action):
        self.left -= 1
        if self.left == 0 and multiprocessing.parent_process() is not None:
            if self.how == "raise":
                raise FloatingPointError("the simulator lost its footing")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)


def config(environment, name="chosen", **more):
    return TrainingConfig.from_mapping(
        {
            "name": name,
            "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1}},
            "environment": {"id": "CartPole-v1", **environment},
            "training": {"total_timesteps": 256, "eval_freq": 256},
            "evaluation": {"episodes": 1},
            "tracking": {"video": False},
            **more,
        }
    )


def test_cheap_environments_stay_in_this_process(monkeypatch):
    monkeypatch.setattr("rltrack.agents.vectorization.time.perf_counter", time.process_time)  # on a busy machine too
    chosen, why = choose_vectorization(EnvironmentConfig(id="CartPole-v1", n_envs=4))
    assert chosen == "dummy"
    assert "µs" in why or "measured" in why or "core" in why
    assert choose_vectorization(EnvironmentConfig(id="CartPole-v1"))[0] == "dummy"


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_slow_environments_get_processes_and_a_resume_keeps_to_it(own_root, monkeypatch):
    slow = {"n_envs": 2, "vectorization": "auto", "wrappers": [f"{__name__}.Slow"]}
    trainer = Trainer(config(slow, checkpoints={"keep_last": 1}))
    trainer.loop.delivers = False
    trainer.train()
    run = Root(own_root).find("chosen")
    choice = run_details(run)["choices"]["vectorization"]
    assert choice["chosen"] == "subproc"
    assert "measured" in choice["reason"]
    assert run.read_config()["environment"]["vectorization"] == "auto"

    def never(environment):
        raise AssertionError("measured again")

    monkeypatch.setattr("rltrack.training.trainer.choose_vectorization", never)
    again = Trainer(config(slow, checkpoints={"keep_last": 1}))
    again.loop.delivers = False
    again.train()
    assert again.loop.was_finished


class Draws(gym.Wrapper):
    """Draws from the process-wide stream when it is made, before any seed."""

    def __init__(self, env):
        super().__init__(env)
        self.drawn = np.random.random()


@pytest.mark.slow
def test_worker_processes_fork_from_one_with_their_imports_and_draw_different_numbers():
    config = EnvironmentConfig(id="CartPole-v1", n_envs=3, vectorization="subproc", wrappers=[f"{__name__}.Draws"])
    venv = make_vec_env_from(config, None)
    try:
        assert len(set(venv.get_attr("drawn"))) == 3
    finally:
        venv.close()


def test_small_networks_learn_on_the_cpu_and_the_record_says_why(own_root):
    trainer = Trainer(config({}, training={"total_timesteps": 64, "eval_freq": None}))
    trainer.loop.delivers = False
    trainer.train()
    choices = run_details(Root(own_root).find("chosen"))["choices"]
    assert choices["device"]["chosen"] == "cpu"
    assert "GPU" in choices["device"]["reason"]
    assert choices["acceleration"]["chosen"] == "on"
    assert "checked bit by bit" in choices["acceleration"]["reason"]


def test_what_is_not_accelerated_is_recorded_with_the_reason(own_root):
    hyperparameters = {"n_steps": 64, "batch_size": 64, "n_epochs": 1, "use_sde": True}
    budget = {"total_timesteps": 64, "eval_freq": None}
    for acceleration, expected in (
        ("auto", "in part (environments, optimizers, checked"),
        (False, "off (as configured)"),
    ):
        agent = {"algorithm": "PPO", "hyperparameters": hyperparameters, "acceleration": acceleration}
        trainer = Trainer(config({"id": "Pendulum-v1"}, str(acceleration), agent=agent, training=budget))
        trainer.loop.delivers = False
        trainer.train()
        run = Root(own_root).find(str(acceleration))
        report = RunReport(run, {})
        report.catch_up(run.journal_file.stat().st_size, 0)
        tag = report.tags()["rltrack.acceleration"]
        assert tag.startswith(expected)
        assert acceleration is False or "networks, collection, update not: the policy explores by gSDE" in tag
        assert run.read_config()["agent"]["acceleration"] == ("auto" if acceleration else "off")


def test_a_gpu_is_chosen_by_the_network(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    small = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert choose_device(small)[0] == "cpu"
    large = PPO("MlpPolicy", "CartPole-v1", device="cpu", batch_size=2048, n_steps=4096,
                policy_kwargs={"net_arch": [1024, 1024]})  # fmt: skip
    device, why = choose_device(large)
    assert device == "cuda"
    assert "parameters" in why


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "raise"])
def test_a_crashed_environment_is_started_again_alone(how):
    builders = [lambda: Dies(gym.make("CartPole-v1"), how), lambda: gym.make("CartPole-v1")]
    env = RestartingSubprocVecEnv(builders)
    alone = DummyVecEnv([builders[1]])
    try:
        env.seed(3)
        alone.seed(4)
        observations, other = env.reset(), alone.reset()
        ended = []
        for step in range(100):
            actions = np.array([step % 2, step % 2])
            before = observations
            observations, rewards, dones, infos = env.step(actions)
            other, other_rewards, other_dones, _ = alone.step(actions[1:])
            assert np.array_equal(observations[1], other[0]), "the other environment did not notice"
            assert (rewards[1], dones[1]) == (other_rewards[0], other_dones[0])
            if dones[0] and "episode" in infos[0]:
                ended.append(step)
                assert infos[0]["TimeLimit.truncated"]
                assert np.array_equal(infos[0]["terminal_observation"], before[0])
                assert infos[0]["episode"]["l"] > 0
                assert rewards[0] == 0.0
        assert ended == [69]
        assert env.restarts == 1
    finally:
        env.close()
        alone.close()


@pytest.mark.slow
def test_one_that_crashes_at_once_every_time_ends_the_training():
    env = RestartingSubprocVecEnv([lambda: Dies(gym.make("CartPole-v1"), "exit", 1)])
    try:
        env.reset()
        with pytest.raises(RuntimeError, match="times in a row"):
            [env.step(np.array([0])) for _ in range(10)]
    finally:
        env.close()


@pytest.mark.slow
def test_a_run_with_restarts_goes_to_its_end_and_says_that_it_is_inexact(own_root):
    dies = {"n_envs": 2, "vectorization": "subproc", "restart_crashed": True, "wrappers": [{f"{__name__}.Dies": {}}]}
    trainer = Trainer(config(dies))
    trainer.loop.delivers = False
    statistics = trainer.train()
    assert statistics.env_steps == 256
    details = run_details(Root(own_root).find("chosen"))
    assert details["environments"]["tier"] == "inexact"
    assert "restart_crashed" in details["environments"]["reason"]
    assert trainer.loop.metrics.latest("rollout/env_restarts") >= 1


def test_restarts_need_processes_and_leave_older_identities_alone():
    with pytest.raises(ConfigurationError, match="subproc"):
        Trainer(config({"restart_crashed": True})).prepare()
    assert "restart_crashed" not in identity(config({}))["environment"]
    assert identity(config({"restart_crashed": True}))["environment"]["restart_crashed"] is True
