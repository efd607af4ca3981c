"""An old name works for a release, with a warning that names the new one."""

from __future__ import annotations

import pytest

import rltrack
from rltrack import deprecation
from rltrack.config import TrainingConfig
from rltrack.deprecation import Renamed


def test_a_public_name(monkeypatch):
    monkeypatch.setitem(deprecation.NAMES, "TrainLoop", Renamed("TrainingLoop", "0.3"))
    with pytest.warns(
        DeprecationWarning, match=r"'TrainLoop' is now 'TrainingLoop'; the old name goes in rltrack 0\.3"
    ) as seen:
        assert rltrack.TrainLoop is rltrack.TrainingLoop
    assert seen[0].filename == __file__


def test_a_configuration_key(monkeypatch):
    monkeypatch.setitem(deprecation.KEYS, "training.eval_every", Renamed("training.eval_freq", "0.3"))
    config = {
        "agent": {"algorithm": "PPO"},
        "environment": {"id": "CartPole-v1"},
        "training": {"total_timesteps": 100, "eval_every": 7},
    }
    with pytest.warns(DeprecationWarning, match="'training.eval_every' is now 'training.eval_freq'"):
        assert TrainingConfig.from_mapping(config).training.eval_freq == 7
    config["training"]["eval_freq"] = 9
    with pytest.warns(DeprecationWarning, match="eval_every"):
        assert TrainingConfig.from_mapping(config).training.eval_freq == 9
    assert config["training"]["eval_every"] == 7, "what was given is left alone"
