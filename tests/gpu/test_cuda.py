"""What needs a GPU: exact resume on CUDA, its memory and use in the samples, and what `auto` chooses."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")

import torch

from rltrack.agents import build_agent
from rltrack.config import TrainingConfig
from rltrack.resources import ResourceSampler, gpu_names
from rltrack.training.verify import verify_resume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

SMALL = {"policy_kwargs": {"net_arch": [64]}}
AGENTS = {
    "PPO": ("CartPole-v1", {"n_steps": 64, "batch_size": 64, "n_epochs": 3, **SMALL}),
    "A2C": ("CartPole-v1", SMALL),
    "DQN": ("CartPole-v1", {"learning_starts": 100, "buffer_size": 1000, **SMALL}),
    "SAC": ("Pendulum-v1", {"learning_starts": 100, "buffer_size": 1000, **SMALL}),
    "TD3": ("Pendulum-v1", {"learning_starts": 100, "buffer_size": 1000, "action_noise": {"normal": 0.1}, **SMALL}),
}


def config(algorithm: str, device: str, **hyperparameters) -> TrainingConfig:
    env_id, settings = AGENTS[algorithm]
    return TrainingConfig.from_mapping(
        {
            "agent": {"algorithm": algorithm, "hyperparameters": {**settings, **hyperparameters}, "device": device},
            "environment": {"id": env_id},
            "training": {"total_timesteps": 800, "eval_freq": 400},
            "evaluation": {"episodes": 1},
            "tracking": {"video": False},
        }
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("algorithm", AGENTS)
def test_a_killed_training_on_cuda_ends_bit_identical(algorithm):
    found = verify_resume(config(algorithm, "cuda"), timesteps=600, kills=2)
    assert found.difference is None
    assert found.compared > 10


def test_auto_chooses_by_the_network_and_says_why():
    agent, env = build_agent(config("PPO", "auto"))
    assert agent.describe_choices()["device"]["chosen"] == "cpu"
    env.close()
    large = {"batch_size": 4096, "n_steps": 4096, "policy_kwargs": {"net_arch": [1024, 1024]}}
    agent, env = build_agent(config("PPO", "auto", **large))
    choice = agent.describe_choices()["device"]
    assert choice["chosen"].startswith("cuda"), choice
    assert "large enough" in choice["reason"]
    env.close()


def test_the_samples_tell_each_gpus_memory_and_use():
    held = torch.zeros(256, 1024, 1024, device="cuda")
    assert gpu_names()
    values = ResourceSampler().sample().to_metrics()
    assert values["system/gpu_0_memory_usage_megabytes"] > held.nbytes / 1e6 * 0.9, values
    assert 0 <= values["system/gpu_0_utilization_percentage"] <= 100
