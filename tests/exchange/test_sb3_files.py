"""A policy goes to plain Stable-Baselines3, where rltrack cannot be imported, and back, and acts the same at each step."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import rltrack
from rltrack.agents.sb3_export import NORMALIZATION, write_sb3
from rltrack.cli import run_command
from rltrack.errors import ConfigurationError
from rltrack.registry.exchange import exportable
from rltrack.registry.gate import Gate
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.training.importing import import_agent
from rltrack.training.trainer import Trainer
from rltrack.zoo_logs import find_agent_files
from tests.exchange.plain import actions_of, plain_actions

ON = {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "learning_rate": {"linear": 0.001}}
OFF = {"learning_starts": 20, "batch_size": 16, "buffer_size": 200}
SMALL_LSTM = {"policy_kwargs": {"lstm_hidden_size": 8}}
MASKED = "rltrack.benchmarks.environments:InvalidAction-v0"
CASES = {
    "PPO": ("MlpPolicy", ON, {"id": "Pendulum-v1", "normalize": True}),
    "SAC": ("MlpPolicy", OFF, {"id": "Pendulum-v1", "normalize": {"norm_reward": False}}),
    "RecurrentPPO": ("MlpLstmPolicy", {**ON, **SMALL_LSTM}, {"id": "CartPole-v1"}),
    "MaskablePPO": ("MlpPolicy", ON, {"id": MASKED}),
    "A2C": ("MlpPolicy", {"n_steps": 16}, {"id": "CartPole-v1", "n_envs": 2}),
    "DQN": ("MlpPolicy", OFF, {"id": "CartPole-v1"}),
    "DDPG": ("MlpPolicy", OFF, {"id": "Pendulum-v1"}),
    "TD3": ("MlpPolicy", {**OFF, "action_noise": {"normal": 0.1}}, {"id": "Pendulum-v1"}),
    "TQC": ("MlpPolicy", OFF, {"id": "Pendulum-v1", "normalize": True}),
    "QRDQN": ("MlpPolicy", OFF, {"id": "CartPole-v1"}),
    "TRPO": ("MlpPolicy", {"n_steps": 64, "batch_size": 32}, {"id": "CartPole-v1"}),
    "CrossQ": ("MlpPolicy", OFF, {"id": "Pendulum-v1"}),
}


def train(root, algorithm, name, **more):
    policy, hyperparameters, environment = CASES[algorithm]
    trainer = Trainer(
        {"name": name, "seed": 3, "agent": {"algorithm": algorithm, "policy": policy, "hyperparameters": hyperparameters},
         "environment": environment, "training": {"total_timesteps": 128}, "evaluation": {"episodes": 1},
         "tracking": {"video": False}, **more},
        root=root,
    )  # fmt: skip
    trainer.loop.delivers = False
    trainer.train()
    return Root(root).find(name)


def inputs_of(env_id, masked):
    """Observations of an episode, and masks for those who want them."""
    module, _, short = env_id.rpartition(":")
    if module:
        __import__(module)
    env = gym.make(short)
    env.action_space.seed(5)
    observations = [env.reset(seed=5)[0]]
    while len(observations) < 30:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        observations.append(env.reset()[0] if terminated or truncated else observation)
    if not masked:
        return {"observations": np.array(observations)}
    masks = np.random.default_rng(0).random((30, 1, env.action_space.n)) < 0.5
    masks[:, :, 3] = True
    return {"observations": np.array(observations), "masks": masks}


def as_plain_sb3(cases, folder):
    """The actions of the files of each algorithm, in one process where importing rltrack fails."""
    (folder / "rltrack").mkdir()
    (folder / "rltrack" / "__init__.py").write_text("raise ImportError('plain SB3 has no rltrack')\n")
    words = [
        f"{algorithm}::{folder / algorithm}::{CASES[algorithm][2]['id'].rpartition(':')[2]}::"
        f"{(folder / algorithm / NORMALIZATION).exists()}"
        for algorithm in cases
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("plain.py")), *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {algorithm: np.load(folder / algorithm / "actions.npy") for algorithm in cases}


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithms", [list(CASES)[:3], pytest.param(list(CASES)[3:], marks=pytest.mark.nightly)], ids=["three", "others"]
)
def test_to_plain_sb3_and_back(tmp_path, algorithms):
    pytest.importorskip("sb3_contrib")
    expected = {}
    for algorithm in algorithms:
        root, environment = tmp_path / f"{algorithm}-root", CASES[algorithm][2]
        train(root, algorithm, "first")
        given = inputs_of(environment["id"], algorithm == "MaskablePPO")
        expected[algorithm] = actions_of(rltrack.load_agent("first", "last", root=root), given)
        with exportable(Root(root), "first@last") as found:
            files = write_sb3(found.model, tmp_path / algorithm / "model.zip")
        normalized = environment.get("normalize")
        assert [file.name for file in files] == ["model.zip", *([NORMALIZATION] if normalized else [])]
        np.savez(tmp_path / algorithm / "given.npz", **given)
    found = as_plain_sb3(algorithms, tmp_path)
    differ = [algorithm for algorithm in algorithms if not np.array_equal(found[algorithm], expected[algorithm])]
    assert differ == []
    for algorithm in algorithms:
        root, file = tmp_path / f"{algorithm}-root", tmp_path / algorithm / "model.zip"
        files = find_agent_files(file, algorithm, CASES[algorithm][2]["id"], None)
        again = import_agent(files, root=root, name="again", trust=True, notify=pytest.fail)
        given = dict(np.load(tmp_path / algorithm / "given.npz"))
        assert np.array_equal(actions_of(rltrack.load_agent("again", "last", root=root), given), expected[algorithm])
        was, now = (Root(root).find(name).configuration().to_training() for name in ("first", "again"))
        assert now.agent.hyperparameters.keys() - {"use_rms_prop"} >= was.agent.hyperparameters.keys()
        assert bool(now.environment.normalize) == bool(was.environment.normalize)
        assert now.environment.n_envs == was.environment.n_envs
        assert again.store().find("last").env_steps == Root(root).find("first").store().find("last").env_steps


@pytest.mark.slow
def test_an_imported_run_is_promoted_exported_from_the_registry_and_trained_from(trained, own_root, tmp_path, capsys):
    trained("PPO")
    file = tmp_path / "a" / "model.zip"
    assert run_command(["--root", str(own_root), "export", "first@last", "--format", "sb3", "--output", str(file)]) == 0
    code = capsys.readouterr().err
    assert f'VecNormalize.load("{file.parent}/vecnormalize.pkl", env)' in code
    assert f'PPO.load("{file}", env=env)' in code
    command = ["--root", str(own_root), "import", str(file), "--algo", "ppo", "--env", "Pendulum-v1", "--name", "again"]
    assert run_command(command) == 2
    assert "--trust" in capsys.readouterr().err
    assert run_command([*command, "--trust"]) == 0
    assert "again@v" in capsys.readouterr().out
    assert promote("again", "pendulum", root=own_root, version="last", gate=Gate(episodes=30)).promoted
    given = inputs_of("Pendulum-v1", masked=False)
    with exportable(Root(own_root), "pendulum@champion") as found:
        write_sb3(found.model, tmp_path / "b" / "model.zip")
    expected = actions_of(rltrack.load_agent("first", "last", root=own_root), given)
    np.savez(tmp_path / "b" / "given.npz", **given)
    assert np.array_equal(plain_actions("PPO", tmp_path / "b", "Pendulum-v1", True), expected)
    more = train(own_root, "PPO", "more", start_from="again@last")
    assert more.store().find("last").env_steps == 128


@pytest.mark.slow
def test_the_printed_code_builds_the_environment(own_root, tmp_path, capsys):
    environment = {
        "id": "gymnasium.envs.classic_control.cartpole:CartPoleEnv",
        "kwargs": {"sutton_barto_reward": True},
        "wrappers": [
            {"gymnasium.wrappers:TransformReward": {"func": "math:floor"}},
            {"gymnasium.wrappers:TimeLimit": {"max_episode_steps": 7}},
            "gymnasium.wrappers:TimeAwareObservation",
        ],
    }
    train(own_root, "PPO", "odd", environment=environment)
    file = tmp_path / "odd.zip"
    assert run_command(["--root", str(own_root), "export", "odd@last", "--format", "sb3", "--output", str(file)]) == 0
    done = {}
    exec(capsys.readouterr().err, done)
    env = done["env"].envs[0]
    assert done["actions"].shape == (1,)
    assert env.unwrapped._sutton_barto_reward is True
    assert env.get_wrapper_attr("_max_episode_steps") == 7
    assert env.get_wrapper_attr("func") is math.floor


@pytest.mark.slow
def test_the_export_of_a_registered_model_writes_over_nothing(trained, own_root, tmp_path, capsys, monkeypatch):
    trained("PPO")
    assert promote("first", "pendulum", root=own_root, version="last", gate=Gate(episodes=30)).promoted
    monkeypatch.chdir(tmp_path)
    command = ["--root", str(own_root), "export", "pendulum@champion", "--format", "sb3"]
    with exportable(Root(own_root), "pendulum@champion") as found:
        zip_file = Path(f"{found.label.replace('@', '-')}.zip")
    for existing in (zip_file, Path(NORMALIZATION)):
        existing.write_text("years of work")
        assert run_command(command) == 2
        assert f"{existing} exists" in capsys.readouterr().err
        assert existing.read_text() == "years of work"
        existing.unlink()
    assert run_command(command) == 0
    assert run_command([*command, "--force"]) == 0


@pytest.mark.slow
def test_a_log_folder_of_rl_zoo3(trained, own_root, tmp_path):
    """As `python -m rl_zoo3.train` leaves it: settings as an ordered mapping with Python's tag, schedules as text."""
    trained("PPO")
    folder = tmp_path / "logs" / "ppo" / "Pendulum-v1_1"
    with exportable(Root(own_root), "first@last") as found:
        write_sb3(found.model, folder / "Pendulum-v1.zip")
    (folder / "Pendulum-v1").mkdir()
    (folder / NORMALIZATION).rename(folder / "Pendulum-v1" / NORMALIZATION)
    tag = "!!python/object/apply:collections.OrderedDict"
    (folder / "Pendulum-v1" / "args.yml").write_text(f"{tag}\n- - - algo\n    - ppo\n  - - env\n    - Pendulum-v1\n")
    (folder / "Pendulum-v1" / "config.yml").write_text(
        f"{tag}\n- - - learning_rate\n    - lin_0.001\n  - - n_envs\n    - 1\n  - - n_timesteps\n    - 128\n"
        "  - - normalize\n    - '{''norm_obs'': True}'\n  - - policy\n    - MlpPolicy\n"
    )
    given = inputs_of("Pendulum-v1", masked=False)
    files = find_agent_files(folder, None, None, None)
    assert (files.algorithm, files.environment["id"]) == ("PPO", "Pendulum-v1")
    import_agent(files, root=own_root, name="zoo", trust=True, notify=pytest.fail)
    ours, theirs = (actions_of(rltrack.load_agent(name, "last", root=own_root), given) for name in ("first", "zoo"))
    assert np.array_equal(ours, theirs)
    (folder / "Pendulum-v1" / NORMALIZATION).unlink()
    with pytest.raises(ConfigurationError, match="the statistics are missing"):
        import_agent(find_agent_files(folder, None, None, None), root=own_root, name="bare", trust=True, notify=print)


def test_what_cannot_be_imported_is_reported(own_root, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="holds: none"):
        find_agent_files(folder, None, None, None)
    file = folder / "model.zip"
    with pytest.raises(ConfigurationError, match="There is no file"):
        find_agent_files(file, "ppo", "CartPole-v1", None)
    file.write_bytes(b"no zip")
    with pytest.raises(ConfigurationError, match=r"does not say which algorithm.*--algo and --env"):
        find_agent_files(file, None, "CartPole-v1", None)
    with pytest.raises(ConfigurationError, match="--vecnormalize names"):
        find_agent_files(file, "ppo", "CartPole-v1", folder / "x.pkl")
    files = find_agent_files(file, "ppo", "CartPole-v1", None)
    with pytest.raises(ConfigurationError, match="--trust"):
        import_agent(files, root=own_root, notify=print)
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        import_agent(files, root=own_root, trust=True, notify=print)
    assert Root(own_root).names() == []
    (folder / "args.yml").write_text("algo: !!python/object/apply:os.system [id]\n")
    with pytest.raises(ConfigurationError, match=r"args\.yml"):
        find_agent_files(file, "ppo", "CartPole-v1", None)
