"""What looks like a secret is written nowhere."""

from __future__ import annotations

import base64
import json
import os
import stat
from urllib.parse import quote

import gymnasium as gym
import pytest
from pydantic import ValidationError

from rltrack.agents.environments import make_gym_env
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.files import replace_text
from rltrack.flows.databases import Databases
from rltrack.plain_data import apply_overrides, read_yaml
from rltrack.runs import Root
from rltrack.secrets import HIDDEN, is_secret, redacted, with_environment_values, without_password, without_secrets
from rltrack.tracking.destination import resolve_destination


@pytest.mark.parametrize(
    "key",
    ["password", "api_key", "environment.kwargs.apiKey", "DB_PASSWORD", "auth-token", "aws_secret_access_key", "pass", "db_pass",
     "dbPass", "passphrase", "ssh-passphrase", "dsn", "SENTRY_DSN", "PGPASSWORD", "environment.kwargs.dsn"],
)  # fmt: skip
def test_names_of_secrets(key):
    assert is_secret(key, "hunter2")


@pytest.mark.parametrize("key", [
    "n_tokens", "token_dim", "keep_last", "policy", "monkey", "key", "tokenizer", "bypass", "pass_through", "passenger", "passes",
    "compass", "low_pass", "band_pass", "n_passes", "passive", "first_pass", "dsnake",
])  # fmt: skip
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


SECRET_TEXTS = [
    "http://me:abc123@host", "postgresql://me:abc123@host/db", "redis://:abc123@host/0", "http://me:abc123@x@host",
    "http://me:abc/123@host", "https://host/x?token=abc123", "https://host/x?a=1&api_key=abc123&b=2",
    "https://host/?X-Api-Key=abc123", "host=db user=me password=abc123", "Server=db;Pwd=abc123;Database=x", "password = abc123",
    "passphrase='abc123'", 'secret="abc123"', "s3://bucket?aws_secret_access_key=abc123", "https://host/x;token=abc123",
    "mysql://host/db?passwd=abc123",
]  # fmt: skip
HARMLESS_TEXTS = [
    "http://host:5000/a@b", "http://127.0.0.1:5000", "http://[::1]:5000/a@b", "postgresql://me@host/db", "n_tokens=5", "a=b&c=d",
    "tests.support.flaky:Flaky-v0", "auto_0.1", "RUN@best", "export RLTRACK_SIGNING_KEY=$(openssl rand -hex 32)", "token=",
    "password=None", "bypass=1 compass=north", "it says: pass", "me@example.com",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_addresses_and_connection_strings_with_a_secret(text):
    assert is_secret("anything", text)
    assert redacted({"anything": text}) == {"anything": HIDDEN}
    told = without_password(f"cannot reach {text} now")
    assert "abc" not in told
    assert "123" not in told
    assert without_password(told) == told, "once is enough"


@pytest.mark.parametrize("text", HARMLESS_TEXTS)
def test_addresses_and_texts_without_one(text):
    assert not is_secret("anything", text)
    assert without_password(f"see {text}") == f"see {text}"


@pytest.mark.parametrize(
    "text",
    ["{'password': 'abc123', 'user': 'me'}", '{"api_key": "abc123"}', "Authorization: Bearer abc123",
     "authorization: Basic abc123==", "me:abc123@host:5000", "{'dsn': \"abc'123\"}"],
)  # fmt: skip
def test_texts_of_errors_lose_their_secrets(text):
    assert "123" not in without_password(f"refused {text}")


def test_there_is_one_place_for_texts_without_secrets():
    from rltrack import secrets
    from rltrack.tracking import destination

    assert destination.without_password is secrets.without_password


@pytest.mark.parametrize(
    "secret", ["two  words", "a/b+c=", "line one of it\nline two of it", "it's", 'q"uote', "back\\slash", "pä55"]
)
def test_a_taken_value_is_shown_in_no_form(monkeypatch, secret):
    monkeypatch.setenv("GUARDED_KEY", secret)
    with_environment_values({"x": {"env": "GUARDED_KEY"}})
    forms = [secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""), " ".join(secret.split()),
             base64.b64encode(secret.encode()).decode(), *[line for line in secret.splitlines() if len(line) >= 8]]  # fmt: skip
    for form in forms:
        assert without_secrets(f"<{form}>") == f"<{HIDDEN}>"


def test_errors_about_input_do_not_repeat_a_secret(tmp_path):
    """Whoever mistypes a key or a value has it on a screen that others see, or in a log."""
    (tmp_path / "bad.yaml").write_text("environment:\n  kwargs: {password: abc123\n")
    (tmp_path / "tag.yaml").write_text("password: !secret abc123\n")
    attempts = [
        lambda: TrainingConfig.from_mapping(config(environment={"id": "X", "kwargs": "password=abc123"})),
        lambda: TrainingConfig.from_mapping(config(environment={"id": "X", "n_envs": "token=abc123"})),
        lambda: TrainingConfig.from_mapping(
            config(environment={"id": "X", "wrappers": [["password", "secret=abc123"]]})
        ),
        lambda: TrainingConfig.from_mapping(config(checkpoints={"store": "//me:abc123@host"})),
        lambda: TrainingConfig.from_mapping(config(tracking={"password": "abc123"})),
        lambda: TrainingConfig.from_mapping(config(name="password=abc123")),
        lambda: read_yaml(tmp_path / "bad.yaml"),
        lambda: read_yaml(tmp_path / "tag.yaml"),
        lambda: apply_overrides({}, ["environment.kwargs.password: abc123"]),
        lambda: apply_overrides({}, ["environment.kwargs.password abc123"]),
        lambda: apply_overrides({}, ["environment.kwargs.password=[abc123"]),
        lambda: apply_overrides(
            {"environment": {"kwargs": {"password": "abc123"}}}, ["environment.kwargs.password.x=1"]
        ),
        lambda: resolve_destination({"mlflow_tracking_uri": "/server?token=abc123"}),
        lambda: make_gym_env("CartPole-v1", {"password": "abc123"}),
        lambda: Databases("mysql://me:abc123@host/db"),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        assert "abc123" not in str(caught.value), str(caught.value)


def test_pydantics_own_words_do_not_repeat_it_either():
    """Prefect checks parameters with the model itself."""
    data = config(environment={"id": "CartPole-v1", "kwargs": {"api_key": "abc123"}, "n_envs": "abc123"})
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate(data)
    assert "abc123" not in str(caught.value)


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


@pytest.mark.slow
def test_nothing_of_a_run_holds_the_secrets_that_a_program_gave_it(tmp_path, delivery, forked):
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
