"""The same bits: weights, optimizers, buffers, metrics and random streams, over algorithms, spaces and options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from rltrack.acceleration.parts import NAMES
from tests.unit.acceleration.cases import BOX, both, build

DISCRETE, SEVERAL, SWITCHES = spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)
SHORT = {"n_steps": 32, "batch_size": 24, "n_epochs": 2}
EARLY = {"learning_starts": 20, "buffer_size": 200, "batch_size": 16}
SMALL = {"net_arch": [16, 16]}


def falling(progress):
    return 1e-3 * progress


ON_POLICY = {
    "ppo discrete": (PPO, DISCRETE, SHORT),
    "ppo box": (PPO, BOX, SHORT),
    "ppo multidiscrete": (PPO, SEVERAL, SHORT | {"n_envs": 2}),
    "ppo multibinary": (PPO, SWITCHES, SHORT),
    "ppo normalized": (PPO, BOX, SHORT | {"n_envs": 3, "normalize": True, "ent_coef": 0.01}),
    "ppo target_kl": (PPO, DISCRETE, SHORT | {"target_kl": 0.0005, "learning_rate": 0.01}),
    "ppo clip_range_vf": (PPO, DISCRETE, SHORT | {"clip_range_vf": 0.1, "clip_range": 0.3, "learning_rate": falling}),
    "ppo plain advantages": (PPO, BOX, SHORT | {"normalize_advantage": False, "gae_lambda": 1.0, "vf_coef": 0.0}),
    "ppo adamw": (
        PPO,
        DISCRETE,
        SHORT | {"policy_kwargs": {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}},
    ),
    "ppo shapes": (
        PPO,
        BOX,
        SHORT | {"policy_kwargs": {"net_arch": {"pi": [7], "vf": [5, 3]}, "activation_fn": torch.nn.GELU}},
    ),
    "ppo without layers": (PPO, BOX, SHORT | {"policy_kwargs": {"net_arch": [], "share_features_extractor": False}}),
    "ppo discrete observations": (PPO, DISCRETE, SHORT | {"observation_space": spaces.Discrete(6)}),
    "a2c discrete": (A2C, DISCRETE, {"n_envs": 2}),
    "a2c box": (A2C, BOX, {"normalize": True, "normalize_advantage": True}),
    "a2c tf-like": (A2C, BOX, {"policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}}),
    "a2c adam": (A2C, SWITCHES, {"use_rms_prop": False, "learning_rate": falling, "n_steps": 8}),
}
OFF_POLICY = {
    "dqn": (DQN, DISCRETE, EARLY | {"target_update_interval": 30, "tau": 0.5}),
    "dqn envs": (DQN, DISCRETE, EARLY | {"n_envs": 2, "normalize": True, "gradient_steps": 2, "train_freq": 3}),
    "dqn discrete observations": (DQN, DISCRETE, EARLY | {"observation_space": spaces.Discrete(6)}),
    "sac": (SAC, BOX, EARLY | {"policy_kwargs": SMALL}),
    "sac fixed": (SAC, BOX, EARLY | {"policy_kwargs": SMALL, "ent_coef": 0.1, "gradient_steps": 2, "n_envs": 2}),
    "sac normalized": (SAC, BOX, EARLY | {"policy_kwargs": SMALL, "normalize": True, "target_update_interval": 2}),
    "td3": (
        TD3,
        BOX,
        EARLY | {"policy_kwargs": SMALL, "action_noise": NormalActionNoise(np.zeros(2), np.full(2, 0.1))},
    ),
    "td3 episodes": (TD3, BOX, EARLY | {"policy_kwargs": SMALL, "train_freq": (1, "episode"), "gradient_steps": -1}),
    "ddpg": (
        DDPG,
        BOX,
        EARLY
        | {
            "policy_kwargs": SMALL | {"n_critics": 1, "activation_fn": torch.nn.ELU},
            "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.1)),
        },
    ),
}


@pytest.mark.parametrize("case", ON_POLICY)
def test_on_policy(case):
    algorithm, space, options = ON_POLICY[case]
    both(lambda: build(algorithm, space, **options), 90, NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("case", OFF_POLICY)
def test_off_policy(case):
    algorithm, space, options = OFF_POLICY[case]
    both(lambda: build(algorithm, space, **options), 70, NAMES, log_interval=1)
