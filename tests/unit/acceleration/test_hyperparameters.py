"""The same bits for any hyperparameters and network shapes."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from tests.unit.acceleration.cases import BOX, both, build

SPACES = [spaces.Discrete(3), BOX, spaces.MultiDiscrete([2, 4]), spaces.MultiBinary(2)]
NETWORKS = st.fixed_dictionaries(
    {
        "net_arch": st.lists(st.integers(1, 33), max_size=3),
        "activation_fn": st.sampled_from(
            [torch.nn.Tanh, torch.nn.ReLU, torch.nn.LeakyReLU, torch.nn.ELU, torch.nn.GELU, torch.nn.SiLU]
        ),
    }
)


@st.composite
def models(draw):
    algorithm = draw(st.sampled_from([PPO, A2C, DQN, SAC, TD3]))
    options = {
        "policy_kwargs": draw(NETWORKS),
        "learning_rate": draw(st.floats(1e-5, 1e-2)),
        "gamma": draw(st.floats(0.8, 1.0)),
        "n_envs": draw(st.integers(1, 3)),
        "normalize": draw(st.booleans()),
        "seed": draw(st.integers(0, 100)),
    }
    space = draw(st.sampled_from(SPACES)) if algorithm in (PPO, A2C) else SPACES[0] if algorithm is DQN else BOX
    if algorithm is PPO:
        options |= {"n_steps": draw(st.integers(4, 40)), "batch_size": draw(st.integers(2, 70))}
        options |= {"n_epochs": draw(st.integers(1, 3)), "ent_coef": draw(st.sampled_from([0.0, 0.01]))}
    elif algorithm is A2C:
        options |= {"n_steps": draw(st.integers(2, 9)), "gae_lambda": draw(st.floats(0.5, 1.0))}
    else:
        options |= {
            "learning_starts": 10,
            "buffer_size": draw(st.integers(30, 100)),
            "batch_size": draw(st.integers(1, 40)),
        }
        options |= {"train_freq": draw(st.integers(1, 3)), "gradient_steps": draw(st.integers(1, 2))}
        options |= {"tau": draw(st.floats(0.001, 1.0))}
    return algorithm, space, options


def check(model):
    algorithm, space, options = model
    both(lambda: build(algorithm, space, **options), 50)


few = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@few
@given(models())
def test_any_model(model):
    check(model)


@pytest.mark.nightly
@many
@given(models())
def test_any_model_of_many(model):
    check(model)
