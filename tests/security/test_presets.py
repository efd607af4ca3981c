"""rl_zoo3's presets are read as data: what rl_zoo3 itself would evaluate as Python is refused or stays a text."""

from __future__ import annotations

import sys

import pytest
import yaml

from rltrack import zoo_presets as zoo
from rltrack.errors import ConfigurationError

HARMLESS = {"n_envs": 1, "n_timesteps": 1000, "policy": "MlpPolicy"}
REFUSED = {
    "a call among arguments": {"policy_kwargs": "dict(net_arch=__import__('os').system('touch owned'))"},
    "a call in a list": {"policy_kwargs": "dict(net_arch=[eval('1')])"},
    "a comprehension": {"policy_kwargs": "{i: i for i in range(9)}"},
    "a call with a star": {"policy_kwargs": "dict(**vars())"},
    "a lambda": {"policy_kwargs": "dict(f=lambda: 1)"},
    "a walrus": {"policy_kwargs": "[(x := 1)]"},
    "no Python": {"policy_kwargs": "dict(net_arch="},
    "nested deeply": {"policy_kwargs": "[" * 500 + "]" * 500},
    "a number that is a call": {"n_timesteps": "__import__('os').getpid()"},
    "noise that is a call": {"noise_type": "normal", "noise_std": "exit()"},
    "a list for a preset": ["n_envs"],
}


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """Lets rl_zoo3's folder hold a preset."""
    (tmp_path / "hyperparams").mkdir()
    monkeypatch.setattr(zoo, "zoo_folder", lambda setting: tmp_path)

    def write(raw) -> dict:
        (tmp_path / "hyperparams" / "ppo.yml").write_text(yaml.safe_dump({"CartPole-v1": raw}))
        return zoo.zoo_preset("PPO", "CartPole-v1")

    return write


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_nothing_is_evaluated(presets, raw):
    events = []
    watching = [True]
    sys.addaudithook(
        lambda event, _: events.append(event) if watching and event in ("os.system", "subprocess.Popen") else None
    )
    try:
        with pytest.raises(ConfigurationError):
            presets({**HARMLESS, **raw} if isinstance(raw, dict) else raw)
    finally:
        watching.clear()
    assert events == []


def test_a_tag_of_yaml_is_refused(tmp_path, monkeypatch):
    (tmp_path / "hyperparams").mkdir()
    (tmp_path / "hyperparams" / "ppo.yml").write_text("CartPole-v1: !!python/object/apply:os.system ['touch owned']")
    monkeypatch.setattr(zoo, "zoo_folder", lambda setting: tmp_path)
    with pytest.raises(ConfigurationError):
        zoo.zoo_preset("PPO", "CartPole-v1")


def test_names_of_classes_stay_texts(presets):
    found = presets({**HARMLESS, "policy_kwargs": "dict(activation_fn=nn.ReLU, ortho_init=False, x=os.system)"})
    read = found["agent"]["hyperparameters"]["policy_kwargs"]
    assert read == {"activation_fn": "ReLU", "ortho_init": False, "x": "os.system"}
