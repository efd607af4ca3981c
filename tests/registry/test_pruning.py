"""Deleting old runs: what goes, what stays and why, and that nothing goes before it was asked for."""

from __future__ import annotations

import json
import os
import time

import pytest

pytest.importorskip("stable_baselines3")

from rltrack.cli import run_command
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.registry import pruning
from rltrack.registry.pruning import RunFilter, find_prunable, parse_age, prune
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, agent_of


def trained(name, root, *, steps=128, study=None, stop=False, **more):
    config = TrainingConfig.from_mapping(
        {
            "name": name,
            "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1}},
            "environment": {"id": "CartPole-v1"},
            "training": {"total_timesteps": steps, "eval_freq": 64, "checkpoint_freq": 32},
            "evaluation": {"episodes": 1},
            "tracking": {"video": False, "tags": {"rltrack.study": study} if study else {}},
            **more,
        }
    )
    trainer = Trainer(config, root=root)
    if stop:
        trainer.loop.stop("enough")
    trainer.train()
    return trainer.run_directory


def went(found):
    return {item.run.name for item in found if item.kept is None}


def stays(found):
    return {item.run.name: item.kept for item in found if item.kept is not None}


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("1.5m", 90)])
def test_ages(text, seconds):
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["30", "d", "", "30y"])
def test_what_is_no_age(text):
    with pytest.raises(ConfigurationError, match="30d"):
        parse_age(text)


def test_everything_is_not_wanted_by_saying_nothing(own_root):
    with pytest.raises(ConfigurationError, match="Which runs"):
        find_prunable(Root(own_root), RunFilter(), whole=False)


@pytest.mark.slow
def test_conditions_reasons_and_what_is_deleted(own_root):
    root = Root(own_root)
    for name, more in (("first", {"study": "lot"}), ("second", {"study": "lot", "steps": 64}), ("third", {"study": "lot"}),
                       ("other", {}), ("halted", {"study": "lot", "stop": True})):  # fmt: skip
        trained(name, own_root, **more)
    trained("next", own_root, stop=True, start_from="first@last")
    found = find_prunable(root, RunFilter(study="lot"), whole=False)
    assert went(found) == {"second", "third"}
    assert "starts from it" in stays(found)["first"]
    assert "--unfinished" in stays(found)["halted"]
    assert went(find_prunable(root, RunFilter(study="lot", unfinished=True), whole=False)) == {
        "second",
        "third",
        "halted",
    }
    assert went(find_prunable(root, RunFilter(pattern="o*"), whole=False)) == {"other"}
    assert went(find_prunable(root, RunFilter(older_than=3600.0), whole=False)) == set()
    assert went(find_prunable(root, RunFilter(below=1e9), whole=False)) == {"second", "third", "other"}
    assert went(find_prunable(root, RunFilter(below=-1.0), whole=False)) == set()
    scores = {item.run.name: item.score for item in found if item.run.name in ("second", "third", "first")}
    best = max(scores, key=lambda name: scores[name])
    assert best not in went(find_prunable(root, RunFilter(study="lot", keep_best=1), whole=False))
    assert root.names() == ["first", "halted", "next", "other", "second", "third"], "finding out deletes nothing"

    pinned = root.find("third").store().find("last")
    root.find("third").store().pin(pinned)
    before = (root.find("second").path / "journal.jsonl").read_bytes()
    assert prune(root, found, whole=False, notify=lambda text: None) == []
    assert (root.find("second").path / "journal.jsonl").read_bytes() == before
    assert [version.is_resumable for version in root.find("second").store().versions()] == [False]
    agent, env, _, _ = agent_of(root.find("second"), "best")  # what was best can still act
    env.close()
    assert agent.model is not None
    assert root.find("third").store().find("last").name == pinned.name
    assert root.find("first").store().find("last").is_resumable


def test_a_run_that_trains_is_left_alone(own_root):
    run = trained("busy", own_root)
    with run.lock():
        [item] = find_prunable(Root(own_root), RunFilter(pattern="busy"), whole=True)
        assert item.kept == "it is being trained"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whole_runs_go_from_mlflow_and_the_remote_store_too_but_never_a_champions(
    own_root, tmp_path, delivery, monkeypatch, capsys
):
    from rltrack.registry.model_registry import ModelRegistry

    monkeypatch.setenv("RLTRACK_SIGNING_KEY", "a key for tests only")
    store = f"file://{tmp_path}/store"
    root = Root(own_root)
    for name in ("champion", "loser"):
        trainer_run = trained(name, own_root, checkpoints={"store": store})
        deadline = time.monotonic() + 120
        while trainer_run.is_shipped() or not pruning.is_delivered(trainer_run):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert run_command(["promote", "champion", "--model", "cart"]) == 0
    assert sorted(os.listdir(tmp_path / "store")) == ["champion", "loser"]
    capsys.readouterr()
    assert run_command(["prune", "--match", "*", "--runs"]) == 0
    said = capsys.readouterr().out
    assert "origin of version 1 of model 'cart'" in said
    assert "--yes" in said
    assert root.names() == ["champion", "loser"]
    run_id = pruning.read_bookmark(root.find("loser")).mlflow.state["run_id"]
    assert run_command(["prune", "--match", "*", "--runs", "--yes", "--json"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["loser"]["kept"] is None
    assert root.names() == ["champion"]
    assert os.listdir(own_root / "runs") == ["champion"]
    assert os.listdir(tmp_path / "store") == ["champion"]
    client = ModelRegistry(root).client
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    assert run_command(["models"]) == 0
