"""Scheduled retraining: a new name each time, and where it begins."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.flows import evaluate as evaluate_flow
from rltrack.flows import promote as promote_flow
from rltrack.flows import retrain as flow
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.runs import Root
from rltrack.training.trainer import Trainer
from tests.flows.test_train_flow import config, flow_runs
from tests.support.agents import TinyEnv
from tests.support.models import add_skill, tiny_config


def test_names():
    when = datetime(2026, 11, 23, 5, 0, tzinfo=timezone(timedelta(hours=2)))
    assert flow.retrained_name(config("nightly"), None, when) == "nightly-20261123-030000"
    assert flow.retrained_name(config("nightly"), "nightly-1", when) == "nightly-1"
    unnamed = config("x").model_copy(update={"name": None})
    assert flow.retrained_name(unnamed, None, datetime(2026, 1, 2, tzinfo=UTC)) == "ppo-cartpole-v1-s3-20260102-000000"


@pytest.mark.slow
def test_each_begins_with_the_policy_of_the_one_before(client, own_root, monkeypatch):
    short = {"total_timesteps": 128, "eval_freq": None, "checkpoint_freq": None}
    assert flow.last_finished(Root(), "nightly") is None
    Trainer(config("other", **short)).train()
    Trainer(config("nightly-s1", **short)).train()  # one that no retraining made
    first = "nightly-20260101-030000"
    assert flow.retrain(config("nightly", **short), run=first, return_state=True).is_completed()
    assert Root().find(first).read_config()["start_from"] is None
    assert flow.retrain(config("nightly", **short), run="nightly-2", return_state=True).is_completed()
    origin = Root().find("nightly-2").read_config()["start_from"]
    assert origin == f"{first}@v1"
    assert flow.retrain(config("nightly", **short), False, "nightly-3", return_state=True).is_completed()
    assert Root().find("nightly-3").read_config()["start_from"] is None
    # one that goes on begins with what it began with, whatever has finished since
    assert flow.retrain(config("nightly", **short), run="nightly-2", return_state=True).is_completed()
    assert [run.state.name for run in flow_runs(client, "nightly-2")] == ["Completed", "Completed"]


def tiny(name: str, seed: int = 0):
    return TrainingConfig.from_mapping(tiny_config(name, seed=seed))


@pytest.mark.slow
def test_a_model_gets_a_champion_and_keeps_it_until_a_better_one_comes(client, own_root, monkeypatch):
    gate = Gate(episodes=30)
    first = flow.retrain(tiny("fresh"), run="tiny-1", model="tiny", gate=gate, return_state=True)
    assert first.name == "Promoted", first.message
    # from here on from the champion's own configuration, with another seed, beginning with its policy
    second = flow.retrain(None, run="tiny-2", model="tiny", gate=gate, return_state=True)
    assert second.name in ("NotPromoted", "Promoted")
    trained = Root().find("tiny-2").read_config()
    assert trained["start_from"].startswith("tiny-1@")
    assert trained["seed"] == flow.new_seed("tiny-2") != 0
    champion = ModelRegistry(Root()).champion("tiny").version
    # a better one, by hand; and a worse one through the flow
    run = Root().find("tiny-2")
    better = promote_flow.promote("tiny-2", "tiny", add_skill(run, 5.0), gate, return_state=True)
    assert better.name == "Promoted"
    worse = promote_flow.promote("tiny-2", "tiny", add_skill(run, -5.0), gate, return_state=True)
    assert worse.name == "NotPromoted"
    assert "is not above 0" in worse.message
    assert ModelRegistry(Root()).champion("tiny").version != champion
    events = ModelRegistry(Root()).history("tiny")
    assert [event.kind for event in events][-2:] == ["promoted", "refused"]
    # the same again, as after a crash between decision and end: nothing is played or trained
    again = promote_flow.promote("tiny-2", "tiny", events[-1].source.partition("@")[2], gate, return_state=True)
    assert again.name == "NotPromoted"
    assert len(ModelRegistry(Root()).history("tiny")) == len(events)
    assert evaluate_flow.evaluate_champion("tiny", 30, 1e-6, return_state=True).name == "AsItWas"
    with pytest.raises(ConfigurationError, match="RLTRACK_ALLOWED_MODULES"):
        promote_flow.check_champion("tiny")  # as a deployment's run does: its environment is a module of ours
    # the world changes: each action is worth less
    step = TinyEnv.step
    monkeypatch.setattr(TinyEnv, "step", lambda self, action: step(self, np.asarray(action) - 0.1))
    degraded = evaluate_flow.evaluate_champion("tiny", episodes=30, return_state=True)
    assert degraded.name == "Degraded", degraded.message
    deadline = time.monotonic() + 30
    while not (found := emitted(client, "rltrack.champion.degraded")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found[0]["resource"]["prefect.resource.id"] == "rltrack.model.tiny"
    assert found[0]["payload"]["model"] == "tiny"


def emitted(client, name: str):
    answer = client._client.post("/events/filter", json={"filter": {"event": {"name": [name]}}})
    return answer.json()["events"]


@pytest.mark.slow
def test_nothing_to_retrain(client, own_root):
    failed = flow.retrain(None, run="none-1", model="none", return_state=True)
    assert failed.is_failed()
    assert "has no champion yet" in failed.message
    assert not Root().exists("none-1")


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_champion_of_a_script_is_evaluated_and_retrained(client, own_root, tmp_path, monkeypatch):
    project = Path(__file__).resolve().parents[2] / "examples" / "own_project"
    here = {**os.environ, "RLTRACK_ROOT": str(own_root), "RLTRACK_ALLOWED_MODULES": "tank", "RLTRACK_VIDEO": "off"}
    rltrack = [sys.executable, "-m", "rltrack"]
    for command in ([sys.executable, "train.py"], [*rltrack, "promote", "tank", "--model", "tank", "--episodes", "30"]):
        subprocess.run(command, cwd=project, env=here, check=True)
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "tank")
    monkeypatch.setenv("RLTRACK_PROJECT", str(project))  # as `rltrack up` gives it to its workers
    monkeypatch.chdir(tmp_path)
    assert evaluate_flow.evaluate_champion("tank", 20, 1e-6, return_state=True).name == "AsItWas"
    ended = flow.retrain(None, run="tank-2", model="tank", gate=Gate(episodes=30), return_state=True)
    assert ended.name in ("Promoted", "NotPromoted"), ended.message
    assert Root().find("tank-2").read_config()["start_from"].startswith("tank@")
