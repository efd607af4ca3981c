"""The first configuration that `rltrack init` writes."""

from __future__ import annotations

import re

import pytest
import yaml
from typer.testing import CliRunner

from rltrack.cli import app, run_command
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.starter import starter
from tests.support.extras import needs


@pytest.mark.parametrize(
    ("algorithm", "env_id"),
    [("ppo", "CartPole-v1"), ("sac", "Pendulum-v1"), ("td3", "Pendulum-v1"), ("a2c", "Acrobot-v1")],
)
def test_is_a_valid_configuration(algorithm, env_id):
    config = TrainingConfig.from_mapping(yaml.safe_load(starter(algorithm, env_id, timesteps=5000)))
    assert config.agent.algorithm == algorithm.upper()
    assert config.environment.id == env_id
    assert (config.training.total_timesteps, config.training.eval_freq) == (5000, 500)


def test_names_every_key_and_each_can_be_switched_on():
    text = starter("ppo", "CartPole-v1")
    everything = TrainingConfig.model_json_schema()
    for model in (everything, *everything["$defs"].values()):
        if model["title"] not in ("NormalizeConfig",):
            for key in model["properties"]:
                assert re.search(rf"^ *#?{key}:", text, flags=re.MULTILINE), key
    switched_on = re.sub(r"^( *)#(\w+: (?!null).*)$", r"\1\2", text, flags=re.MULTILINE)
    tree = yaml.safe_load(switched_on)
    tree["agent"]["hyperparameters"] = {}
    assert TrainingConfig.from_mapping(tree).checkpoints.probe is True


def test_takes_the_tuned_settings_where_there_are_any():
    needs("rl_zoo3")
    assert "n_steps: 32" in starter("ppo", "CartPole-v1")
    assert "rl_zoo3's tuned settings" in starter("ppo", "CartPole-v1")


def test_finds_out_before_it_writes():
    with pytest.raises(ConfigurationError, match="Did you mean"):
        starter("ppo", "CartPol-v1")
    with pytest.raises(ConfigurationError, match="SAC"):
        starter("sac", "CartPole-v1")


def test_the_command_does_not_write_over_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["init", "--algo", "ppo", "--env", "CartPole-v1"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (tmp_path / "ppo-cartpole-v1.yaml").write_text("mine")
    assert run_command(arguments) == 2
    assert (tmp_path / "ppo-cartpole-v1.yaml").read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert "seed: 0" in (tmp_path / "ppo-cartpole-v1.yaml").read_text()
