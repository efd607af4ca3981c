"""Code that a configuration names as package.module:Name."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import gymnasium as gym
import pytest

pytest.importorskip("stable_baselines3")
from rltrack.agents.environments import make_gym_env
from rltrack.agents.factory import build, check
from rltrack.agents.wrappers import wrapper_stack
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, NotAllowed
from rltrack.flows.training import check_parameters
from rltrack.named_code import check_defined_there, import_code, is_code_name, name_of, names_in, resolve
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, evaluate_run, load_agent

PROJECT = Path(__file__).resolve().parents[2] / "examples" / "own_project"


@pytest.fixture(autouse=True)
def _own_project(monkeypatch):
    """As a command that is started in the project's folder."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.chdir(PROJECT)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("tank", "broken_module"):
            del sys.modules[name]


def config(**sections):
    data = {
        "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 8, "batch_size": 8}},
        "environment": {"id": "tank.env:TankEnv"},
        "training": {"total_timesteps": 16},
    }
    for name, section in sections.items():
        data[name] = {**data[name], **section} if isinstance(section, dict) else section
    return TrainingConfig.from_mapping(data)


def agent_with(**hyperparameters):
    return {"agent": {"hyperparameters": hyperparameters}}


def built(given):
    agent, env = build(given)
    close_all(env)
    return agent.model


@pytest.mark.parametrize("text", ["a:B", "a.b:c_d", "myproj.env:TankEnv"])
def test_names(text):
    assert is_code_name(text)


@pytest.mark.parametrize(
    "text", ["CartPole-v1", "a:Env-v0", "a.B", ":B", "a:", "cuda:0", "a:b.c", "http://x", "a b:C", "1a:B", 5, None]
)
def test_what_is_no_name(text):
    assert not is_code_name(text)


def test_an_environment_by_its_class_or_by_a_function():
    by_class = make_gym_env("tank.env:TankEnv", {"leak": 0.5})
    assert type(by_class) is import_code("tank.env:TankEnv", "")
    assert by_class.leak == 0.5
    assert type(make_gym_env("tank.env:make_tank")) is import_code("tank.wrappers:SlowSensor", "")


def test_every_place_where_sb3_takes_code(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text(
        "import numpy as np\n"
        "from stable_baselines3 import SAC\n"
        "from stable_baselines3.common.buffers import ReplayBuffer\n"
        "from stable_baselines3.common.noise import NormalActionNoise\n"
        "from stable_baselines3.sac.policies import MlpPolicy\n"
        "from torch import nn, optim\n"
        "class Mine(SAC): pass\n"
        "class Policy(MlpPolicy): pass\n"
        "class Buffer(ReplayBuffer): pass\n"
        "class Wave(nn.Tanh): pass\n"
        "class Optimizer(optim.Adam): pass\n"
        "def noise(sigma): return NormalActionNoise(np.zeros(1), sigma * np.ones(1))\n"
        "def half(remaining): return 0.001 * (0.5 + 0.5 * remaining)\n"
        "def falling(start): return lambda remaining: start * remaining\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    agent = {
        "algorithm": "broken_module:Mine",
        "policy": "broken_module:Policy",
        "hyperparameters": {
            "learning_rate": "broken_module:half",
            "action_noise": {"broken_module:noise": {"sigma": 0.25}},
            "replay_buffer_class": "broken_module:Buffer",
            "buffer_size": 100,
            "policy_kwargs": {
                "net_arch": [8],
                "activation_fn": "broken_module:Wave",
                "optimizer_class": "broken_module:Optimizer",
                "features_extractor_class": "tank.extractor:Difference",
                "features_extractor_kwargs": {"features_dim": 5},
            },
        },
    }
    model = built(config(agent=agent))
    kinds = [
        model,
        model.policy,
        model.replay_buffer,
        model.actor.latent_pi[1],
        model.actor.optimizer,
        model.actor.features_extractor,
    ]
    assert [type(kind).__name__ for kind in kinds] == ["Mine", "Policy", "Buffer", "Wave", "Optimizer", "Difference"]
    assert model.lr_schedule(0.5) == pytest.approx(0.00075)
    assert float(model.action_noise._sigma[0]) == 0.25
    made = built(
        config(
            agent={
                **agent,
                "hyperparameters": {
                    **agent["hyperparameters"],
                    "learning_rate": {"broken_module:falling": {"start": 2.0}},
                },
            }
        )
    )
    assert made.lr_schedule(0.5) == 1.0


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"environment": {"id": "tank.nothing:TankEnv"}}, r"environment\.id: .* no module 'tank\.nothing'\. Searched: .*/tank\."),
        ({"environment": {"id": "nowhere.env:TankEnv"}}, r"no module 'nowhere'\. Searched: .*own_project.*Run the command in"),
        ({"environment": {"id": "tank.env:TankEnvs"}}, r"the module 'tank\.env' has no 'TankEnvs'\. Did you mean 'TankEnv'\?"),
        ({"environment": {"id": "tank.wrappers:SlowSensor"}}, r"tank\.wrappers:SlowSensor"),
        ({"environment": {"id": "tank.extractor:Difference"}}, "no gymnasium.Env|does not take"),
        ({"environment": {"id": "tank.env:np"}}, "is a module; name a class or a function"),
        ({"environment": {"kwargs": {"leek": 1}}}, "does not take"),
        ({"agent": {"algorithm": "tank.env:TankEnv"}}, "not a subclass of stable_baselines3's BaseAlgorithm"),
        ({"agent": {"algorithm": "PPPO"}}, r"Unknown algorithm 'PPPO'.*package\.module:Class"),
        ({"agent": {"policy": "tank.env:Nothing"}}, r"agent\.policy: the module 'tank\.env' has no 'Nothing'"),
        (agent_with(policy_kwargs={"features_extractor_class": "NatureCNN"}), r"is the text 'NatureCNN'\. Write package"),
        (agent_with(policy_kwargs={"activation_fn": "Wobble"}), "torch.nn has no class 'Wobble'"),
        (agent_with(learning_rate={"tank.env:make_tank": {"sigma": 1}}), r"tank\.env:make_tank does not accept \{'sigma': 1\}"),
        ({"environment": {"wrappers": ["nodots"]}}, r"'nodots' is not of the form package\.module:Class"),
        ({"environment": {"monitor_kwargs": {"filename": "x.csv"}}}, "monitor_kwargs has 'filename'.*The journal has"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(sections, message):
    given = config(**sections)
    with pytest.raises(ConfigurationError, match=message):
        check(given)


def test_an_error_in_a_module_is_reported_with_the_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module.py").write_text("import not_installed_at_all\n")
    with pytest.raises(
        ConfigurationError, match="'broken_module' imports 'not_installed_at_all', which is not installed"
    ):
        import_code("broken_module:X", "key")
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    sys.modules.pop("broken_module", None)
    with pytest.raises(ConfigurationError, match="'broken_module' cannot be imported: ZeroDivisionError"):
        import_code("broken_module:X", "key")


def test_a_file_of_the_current_folder_takes_no_packages_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("loads = 'stolen'\n")
    assert import_code("json:loads", "key") is not None
    assert sys.modules["json"].__file__ != str(tmp_path / "json.py")


def test_what_a_module_only_imported_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("from os import system\nfrom tank.env import TankEnv as Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match="only imports 'system'"):
        import_code("broken_module:system", "key")
    with pytest.raises(NotAllowed, match=r"it is torch\.nn\.modules\.activation:ReLU"):
        check_defined_there({"a": ["torch.nn:ReLU"]}, "key")


def test_names_are_found_and_replaced_at_any_depth():
    data = {"a": ["tank.env:TankEnv", {"tank.env:TankEnv": {"leak": 0.25}}], "b": {"c": 1}}
    assert sorted(names_in(data)) == ["tank.env:TankEnv"] * 2
    made = resolve(data, "key")
    assert isinstance(made["a"][0], type)
    assert made["a"][1].leak == 0.25
    assert made["b"] == {"c": 1}
    assert name_of(made["a"][0]) == "tank.env:TankEnv"
    assert name_of(lambda: 0) is None


@pytest.mark.parametrize(
    "sections",
    [
        {"environment": {"id": "tank.env:TankEnv"}},
        {"environment": {"id": "gymnasium:make", "kwargs": {"id": "CartPole-v1"}}},
        {"environment": {"id": "CartPole-v1"}, "agent": {"algorithm": "tank.algorithms:Mine"}},
        {"environment": {"id": "CartPole-v1"}, "agent": {"policy": "tank.policies:Mine"}},
        {"environment": {"id": "CartPole-v1"}, **agent_with(learning_rate={"subprocess:Popen": {"args": "x"}})},
        {"environment": {"id": "CartPole-v1"}, **agent_with(policy_kwargs={"features_extractor_class": "tank.extractor:D"})},
        {"environment": {"id": "CartPole-v1", "vec_env_kwargs": {"start_method": "os:system"}}},
        {"environment": {"id": "CartPole-v1", "wrappers": [{"gymnasium.wrappers:TimeLimit": {"max_episode_steps": "os:system"}}]}},
    ],
)  # fmt: skip
def test_a_worker_allows_none_of_it_unless_it_is_listed(sections, monkeypatch):
    given = config(**sections)
    monkeypatch.delenv("RLTRACK_ALLOWED_MODULES", raising=False)
    with pytest.raises(NotAllowed, match="RLTRACK_ALLOWED_MODULES"):
        check_parameters(given)
    assert "tank" not in sys.modules


def test_a_worker_that_lists_the_package_allows_it(monkeypatch):
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "tank")
    agent = {"hyperparameters": {"policy_kwargs": {"features_extractor_class": "tank.extractor:Difference"}}}
    check_parameters(config(agent=agent))
    import_code("tank.env:TankEnv", "")
    monkeypatch.setattr(sys.modules["tank.env"], "Borrowed", import_code("tank.wrappers:SlowSensor", ""), raising=False)
    with pytest.raises(NotAllowed, match=r"which is not defined there: it is tank\.wrappers:SlowSensor"):
        check_parameters(config(agent={"policy": "tank.env:Borrowed"}))
    wrappers = [{"gymnasium.wrappers:TimeLimit": {"max_episode_steps": "tank.env:Borrowed"}}]
    with pytest.raises(
        NotAllowed, match=r"environment\.wrappers names 'tank\.env:Borrowed', which is not defined there"
    ):
        check_parameters(config(environment={"wrappers": wrappers}))


def test_an_argument_of_a_wrapper_can_be_a_function():
    wrap = wrapper_stack([{"gymnasium.wrappers:TransformReward": {"func": "math:exp"}}])
    env = wrap(gym.make("CartPole-v1"))
    env.reset(seed=0)
    assert env.step(0)[1] == math.e


def test_a_project_trains_and_is_evaluated_by_names_alone(tmp_path):
    given = TrainingConfig.from_file(
        "tank.yaml", ["training.total_timesteps=512", "training.eval_freq=256", "name=tank"]
    )
    assert Trainer(given, root=tmp_path).train().env_steps == 512
    version, evaluation = evaluate_run(Root(tmp_path).find("tank"), episodes=2)
    assert (version.env_steps in (256, 512), len(evaluation.returns)) == (True, 2)
    model = load_agent("tank", root=tmp_path)
    assert type(model.policy.features_extractor).__name__ == "Difference"


def test_gymnasiums_ids_come_first():
    with pytest.raises(ConfigurationError, match=r"Unknown environment 'tank\.env:Tank-v0'"):
        make_gym_env("tank.env:Tank-v0")
    assert isinstance(make_gym_env("gymnasium:CartPole-v1").unwrapped, gym.Env)
