"""Scheduled retraining: a new name each time, and where it begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from flows import retrain as flow
from flows import train
from rltrack.runs import Root
from rltrack.training.trainer import Trainer
from tests.flows.test_train_flow import config, flow_runs


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
    train.trainings.clear()
    assert flow.retrain(config("nightly", **short), run="nightly-1", return_state=True).is_completed()
    assert Root().find("nightly-1").read_config()["start_from"] is None
    assert flow.retrain(config("nightly", **short), run="nightly-2", return_state=True).is_completed()
    origin = Root().find("nightly-2").read_config()["start_from"]
    assert origin == "nightly-1@v1"
    assert flow.retrain(config("nightly", **short), False, "nightly-3", return_state=True).is_completed()
    assert Root().find("nightly-3").read_config()["start_from"] is None
    # one that goes on begins with what it began with, whatever has finished since
    assert flow.retrain(config("nightly", **short), run="nightly-2", return_state=True).is_completed()
    assert [run.state.name for run in flow_runs(client, "nightly-2")] == ["Completed", "Completed"]
