"""Each configuration in configs/ builds; each shipped preset of an installed environment builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from rltrack.config import TrainingConfig
from tests.support.extras import needs

pytest.importorskip("stable_baselines3")
FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
SWEEPS = [path for path in FILES if path.stem.endswith("_sweep")]
CONFIGS = [path for path in FILES if path not in SWEEPS]


def _marks(path):
    """Images are dear; that the file of such a training is valid is seen in every run."""
    return pytest.mark.nightly if TrainingConfig.from_file(path).agent.policy == "CnnPolicy" else pytest.mark.slow


@pytest.mark.parametrize("path", [pytest.param(path, marks=_marks(path), id=path.stem) for path in CONFIGS])
def test_config_builds_and_trains_an_iteration(path):
    from rltrack import Trainer

    overrides = ["training.total_timesteps=64", "training.eval_freq=null", "name=try"]
    assert Trainer(TrainingConfig.from_file(path, overrides)).train().env_steps >= 64


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_can_be_searched(path):
    pytest.importorskip("optuna")
    from rltrack.studies.space import check_space, read_sweep

    base, section = read_sweep(path)
    check_space(base, section)
    assert section.number_of_trials > 1


@pytest.mark.parametrize(
    ("algorithm", "env_id"),
    [
        ("PPO", "Pendulum-v1"), ("PPO", "Acrobot-v1"), ("A2C", "MountainCar-v0"), ("DQN", "MountainCar-v0"),
        ("TD3", "MountainCarContinuous-v0"), ("DDPG", "Pendulum-v1"), ("TQC", "Pendulum-v1"), ("TRPO", "CartPole-v1"),
        ("QRDQN", "CartPole-v1"), ("ARS", "Pendulum-v1"), ("RecurrentPPO", "Acrobot-v1"), ("CrossQ", "Pendulum-v1"),
    ],
)  # fmt: skip
def test_zoo_preset_builds(algorithm, env_id):
    needs("rl_zoo3")
    pytest.importorskip("sb3_contrib")
    from rltrack.agents import build_agent

    config = TrainingConfig.from_mapping(
        {"agent": {"algorithm": algorithm, "preset": "zoo"}, "environment": {"id": env_id}}
    )
    _, env = build_agent(config)
    assert config.training.total_timesteps >= 10_000
    env.close()
