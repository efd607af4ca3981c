"""A run cut into chunks is bit-identical to SB3's own `model.learn(total)`, for each algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rltrack import TrainingLoop
from rltrack.agents.algorithms import LinearSchedule

sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")

from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

SMALL = {"net_arch": [16, 16]}


def ou_noise():
    return OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1))


def off_policy(**more):
    return {"learning_starts": 50, "buffer_size": 500, "batch_size": 16, "policy_kwargs": dict(SMALL), **more}


def on_policy(**more):
    return {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": dict(SMALL), **more}


CASES = {
    "ppo": (sb3.PPO, "CartPole-v1", 2, 600, on_policy(learning_rate=LinearSchedule(1e-3), clip_range=LinearSchedule(0.2))),
    "ppo-unclipped-schedule": (sb3.PPO, "CartPole-v1", 2, 500, on_policy(learning_rate=lambda remaining: 1e-3 * remaining)),
    "ppo-gsde": (sb3.PPO, "Pendulum-v1", 2, 400, on_policy(use_sde=True, sde_sample_freq=4)),
    "a2c": (sb3.A2C, "CartPole-v1", 3, 400, {"policy_kwargs": dict(SMALL)}),
    "dqn": (sb3.DQN, "CartPole-v1", 1, 700, off_policy(train_freq=4, target_update_interval=30)),
    "dqn-3-envs": (sb3.DQN, "CartPole-v1", 3, 600, off_policy(train_freq=8, gradient_steps=4)),
    "sac": (sb3.SAC, "Pendulum-v1", 1, 300, off_policy(learning_rate=LinearSchedule(1e-3))),
    "sac-gsde": (sb3.SAC, "Pendulum-v1", 1, 250, off_policy(use_sde=True, train_freq=8, gradient_steps=8)),
    "td3": (sb3.TD3, "Pendulum-v1", 1, 300, lambda: off_policy(action_noise=ou_noise())),
    "td3-2-envs": (sb3.TD3, "Pendulum-v1", 2, 500, lambda: off_policy(action_noise=ou_noise(), gradient_steps=-1)),
    "ddpg": (sb3.DDPG, "Pendulum-v1", 1, 300, lambda: off_policy(
        action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), train_freq=(1, "episode"), gradient_steps=-1)),
    "tqc": (contrib.TQC, "Pendulum-v1", 1, 250, off_policy()),
    "crossq": (contrib.CrossQ, "Pendulum-v1", 1, 200, off_policy()),
    "qrdqn": (contrib.QRDQN, "CartPole-v1", 1, 500, off_policy(train_freq=4)),
    "trpo": (contrib.TRPO, "CartPole-v1", 2, 400, {"n_steps": 64, "batch_size": 32, "policy_kwargs": dict(SMALL)}),
    "recurrent-ppo": (contrib.RecurrentPPO, "CartPole-v1", 2, 300, {
        "n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"lstm_hidden_size": 8, **SMALL}}),
    "maskable-ppo": (contrib.MaskablePPO, "masked", 2, 300, on_policy()),
    "ars": (contrib.ARS, "CartPole-v1", 1, 1500, {"n_delta": 4, "delta_std": LinearSchedule(0.1)}),
    "ars-2-envs": (contrib.ARS, "CartPole-v1", 2, 4000, {"n_delta": 2}),
}  # fmt: skip
POLICIES = {"recurrent-ppo": "MlpLstmPolicy", "ars": "LinearPolicy", "ars-2-envs": "LinearPolicy"}


def build(case):
    algorithm, env_id, n_envs, total, kwargs = CASES[case]
    kwargs = kwargs() if callable(kwargs) else {**kwargs}
    if "policy_kwargs" in kwargs:
        kwargs["policy_kwargs"] = dict(kwargs["policy_kwargs"])
    if env_id == "masked":
        from sb3_contrib.common.envs import InvalidActionEnvDiscrete

        env = make_vec_env(lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10), n_envs=n_envs, seed=3)
    else:
        env = make_vec_env(env_id, n_envs=n_envs, seed=3)
    if case == "a2c":
        env = VecNormalize(env)
    return algorithm(POLICIES.get(case, "MlpPolicy"), env, seed=3, device="cpu", **kwargs), total


def leaves(model):
    parameters = model.get_parameters()
    found = {f"{owner}/{key}": value for owner, state in parameters.items() if isinstance(state, dict)
             for key, value in state.items() if isinstance(value, torch.Tensor)}  # fmt: skip
    found |= {name: value for name, value in parameters.items() if isinstance(value, torch.Tensor)}
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        found |= {"mean": torch.as_tensor(normalize.obs_rms.mean), "var": torch.as_tensor(normalize.ret_rms.var)}
    return found


FAST = ("ppo",)


NIGHTLY = ("ppo-unclipped-schedule", "sac-gsde", "td3-2-envs", "ars-2-envs", "crossq")
"""An algorithm or a setting that other cases have, too; CrossQ is like SAC."""


def how_often(case):
    return () if case in FAST else pytest.mark.nightly if case in NIGHTLY else pytest.mark.slow


@pytest.mark.parametrize("case", [pytest.param(case, marks=how_often(case)) for case in CASES])
def test_chunks_equal_learn(case):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reference, total = build(case)
    reference.learn(total)
    torch.set_num_threads(threads)

    model, _ = build(case)
    chunk = max(total // 4, 1)
    # masked environments carry no Gymnasium id, so that there is nothing to evaluate in
    evaluation = {} if "masked" in CASES[case][1] else {"eval_freq": chunk, "eval_episodes": 2, "n_eval_envs": 2}
    loop = TrainingLoop(model, total_timesteps=total, checkpoint_freq=chunk, tracking=False, **evaluation)
    statistics = loop.run()

    assert statistics.env_steps == reference.num_timesteps
    expected, found = leaves(reference), leaves(model)
    assert expected.keys() == found.keys()
    different = [key for key in expected if not torch.equal(expected[key], found[key])]
    assert different == []
    assert model.num_timesteps == reference.num_timesteps
    assert torch.get_num_threads() == threads, "the number of threads is put back"
    if evaluation:
        assert len(statistics.evaluations) >= 2
