"""A policy is pushed to a hub on this machine, and imported from there."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

pytest.importorskip("stable_baselines3")
pytest.importorskip("huggingface_hub")

import rltrack
from rltrack.cli import run_command
from rltrack.errors import ConfigurationError, RltrackError
from rltrack.registry.hub import download, push
from rltrack.runs import Root
from tests.exchange.plain import actions_of
from tests.exchange.test_sb3_files import inputs_of
from tests.support.hub import hub_server


@pytest.mark.slow
def test_to_the_hub_and_back(trained, own_root, monkeypatch, capsys):
    trained("PPO")
    with hub_server(monkeypatch) as hub:
        command = ["--root", str(own_root), "push", "first@last", "--hub", "team/ppo-Pendulum-v1", "--episodes", "3"]
        assert run_command([*command, "--no-video"]) == 0, capsys.readouterr().err
        files = hub.files["team/ppo-Pendulum-v1"]
        assert files.keys() >= {
            "README.md", "ppo-Pendulum-v1.zip", "vec_normalize.pkl", "config.yml", "args.yml", "results.json",
            "learning_curve.png",
        }  # fmt: skip
        card = files["README.md"].decode()
        meta = yaml.safe_load(card.split("---")[1])
        assert meta["library_name"] == "stable-baselines3"
        assert "95 % interval" in card
        assert 'PPO.load("ppo-Pendulum-v1.zip", env=env)' in card
        assert yaml.safe_load(files["config.yml"])["learning_rate"] == "lin_0.001"
        assert str(own_root) not in card
        assert run_command(["--root", str(own_root), "import", "hf://team/ppo-Pendulum-v1", "--name", "again"]) == 2
        assert (
            run_command(["--root", str(own_root), "import", "hf://team/ppo-Pendulum-v1", "--name", "again", "--trust"])
            == 0
        )
        with pytest.raises(RltrackError, match="The hub refuses team/nothing"):
            download("hf://team/nothing", own_root / "x")
    given = inputs_of("Pendulum-v1", masked=False)
    ours, theirs = (actions_of(rltrack.load_agent(name, "last", root=own_root), given) for name in ("first", "again"))
    assert np.array_equal(ours, theirs)


def test_a_repository_has_an_owner_and_a_name(own_root):
    for name in ("name", "a/b/c", "../x", "https://hub/a", ""):
        with pytest.raises(ConfigurationError, match="ORG/NAME"):
            push(Root(own_root), "run", name, notify=print)
