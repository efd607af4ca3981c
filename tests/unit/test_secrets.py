"""What looks like a secret is written nowhere."""

from __future__ import annotations

import os
import stat

import gymnasium as gym
import pytest

from rltrack.agents.environments import make_gym_env
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.files import replace_text
from rltrack.runs import Root
from rltrack.secrets import HIDDEN, is_secret, redacted


@pytest.mark.parametrize(
    "key", ["password", "api_key", "environment.kwargs.apiKey", "DB_PASSWORD", "auth-token", "aws_secret_access_key"]
)
def test_names_of_secrets(key):
    assert is_secret(key, "hunter2")


@pytest.mark.parametrize("key", ["n_tokens", "token_dim", "keep_last", "policy", "monkey", "key", "tokenizer"])
def test_names_of_others(key):
    assert not is_secret(key, "hunter2")


def test_only_texts_are_secrets():
    assert not is_secret("use_token", True)
    assert not is_secret("token", 3)
    assert not is_secret("password", "")


def test_redacts_at_every_depth_and_addresses_too():
    tree = {"a": {"b": [{"secret": "x", "n": 1}]}, "store": "s3://key:secret@bucket/x", "page": "http://host:80/a@b"}
    assert redacted(tree) == {
        "a": {"b": [{"secret": HIDDEN, "n": 1}]}, "store": HIDDEN, "page": "http://host:80/a@b",
    }  # fmt: skip


def config(**sections):
    return {
        "agent": {"algorithm": "PPO"},
        "environment": {"id": "CartPole-v1"},
        "training": {"total_timesteps": 100},
        **sections,
    }


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"environment": {"id": "CartPole-v1", "kwargs": {"api_key": "abc123"}}}, "environment.kwargs.api_key"),
        ({"tracking": {"tags": {"token": "abc123"}}}, "tracking.tags.token"),
        ({"tracking": {"mlflow_tracking_uri": "http://me:abc123@host"}}, "tracking.mlflow_tracking_uri"),
        ({"checkpoints": {"store": "s3://key:abc123@bucket/runs"}}, "checkpoints.store"),
    ],
)
def test_a_configuration_holds_no_secret(sections, key):
    with pytest.raises(ConfigurationError, match="looks like a secret") as error:
        TrainingConfig.from_mapping(config(**sections))
    assert key in str(error.value)
    assert "abc123" not in str(error.value)


class Guarded(gym.Env):
    """Wants a key."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, api_key):
        self.opened = api_key == "abc123"


gym.register("tests/Guarded-v0", Guarded)


def test_an_environment_takes_it_from_an_environment_variable(monkeypatch):
    kwargs = {"api_key": {"env": "GUARDED_KEY"}}
    assert TrainingConfig.from_mapping(config(environment={"id": "tests/Guarded-v0", "kwargs": kwargs}))
    monkeypatch.setenv("GUARDED_KEY", "abc123")
    assert make_gym_env("tests/Guarded-v0", kwargs).unwrapped.opened
    monkeypatch.delenv("GUARDED_KEY")
    with pytest.raises(ConfigurationError, match="GUARDED_KEY, which is not set"):
        make_gym_env("tests/Guarded-v0", kwargs)


def test_errors_do_not_repeat_it(monkeypatch, own_root):
    from rltrack import TrainingLoop
    from tests.support.agents import ScriptedAgent, TinyEnv

    monkeypatch.setenv("GUARDED_KEY", "abc123")
    kwargs = {"api_key": {"env": "GUARDED_KEY"}}
    with pytest.raises(ConfigurationError, match="unexpected keyword argument 'api_key'") as error:
        make_gym_env("CartPole-v1", kwargs)
    assert "abc123" not in str(error.value)

    class Refused(TinyEnv):
        def step(self, action):
            raise OSError("the key abc123 was refused")

    with pytest.raises(OSError, match="abc123"):  # to the caller, who gave it
        TrainingLoop(ScriptedAgent(), Refused(), total_timesteps=100, name="refused").run()
    journal = (own_root / "runs" / "refused" / "journal.jsonl").read_text()
    assert f"the key {HIDDEN} was refused" in journal
    assert "abc123" not in journal


def test_nothing_of_a_run_holds_the_secrets_that_a_program_gave_it(tmp_path, delivery):
    from rltrack import TrainingLoop
    from tests.support.agents import ScriptedAgent, TinyEnv

    config = {"environment": {"kwargs": {"password": "abc123"}}, "tracking": {"tags": {"token": "abc123"}}}
    loop = TrainingLoop(ScriptedAgent(), TinyEnv(), total_timesteps=100, root=tmp_path, name="guarded", config=config)
    loop.run()
    assert loop.wait_for_tracking(60)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if b"abc123" in path.read_bytes()] == []
    assert HIDDEN in (tmp_path / "runs" / "guarded" / "config.yaml").read_text()


def test_the_root_and_files_with_addresses_are_their_owners(tmp_path):
    root = Root(tmp_path / "new" / "root")
    root.check_writable()
    assert stat.S_IMODE(os.stat(root.path).st_mode) == 0o700
    replace_text(tmp_path / "settings", "x", 0o600)
    replace_text(tmp_path / "settings", "y", 0o600)
    assert stat.S_IMODE(os.stat(tmp_path / "settings").st_mode) == 0o600
