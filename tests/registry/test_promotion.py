"""Promotion on a real database: who becomes champion, what is kept of it, and what is left alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from rltrack.errors import (
    ConfigurationError,
    ModelBroken,
    ModelNotFound,
    PolicyNotStorable,
    RegistryUnavailable,
)
from rltrack.evaluation.episodes import episode_seeds
from rltrack.journal.lines import decode_record, encode_record, numbered_line
from rltrack.registry.champions import evaluate_champion, prune_models, rollback
from rltrack.registry.gate import Gate
from rltrack.registry.match import fresh_seeds
from rltrack.registry.model_registry import LINKS_TAG, ModelRegistry
from rltrack.registry.overview import model_rows
from rltrack.registry.promotion import promote
from rltrack.registry.registered import CHAMPION
from rltrack.runs import Root
from tests.support.models import add_skill, run_of_skill

pytestmark = pytest.mark.slow
GATE = Gate(episodes=30)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A root with runs of three skills, delivered; copied for each test, since a database keeps paths."""
    root = tmp_path_factory.mktemp("registry") / "mlruns"
    for name, skill in (("poor", 0.2), ("fair", 0.5), ("good", 0.8)):
        run_of_skill(root, name, skill)
    return root


@pytest.fixture
def root(prepared, own_root):
    shutil.copytree(
        prepared, own_root, ignore=shutil.ignore_patterns("mlflow.db*", "artifacts", "registry", "delivered.json")
    )
    return Root(own_root)


@pytest.mark.parametrize("own", [None, "true"])
def test_mlflow_shows_no_progress_bars_and_a_users_setting_stays(root, capfd, monkeypatch, own):
    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    monkeypatch.delenv(name, raising=False) if own is None else monkeypatch.setenv(name, own)
    for run in ("fair", "good"):
        promote(root.find(run), "tiny", gate=GATE)
    evaluate_champion(root, "tiny", episodes=5)
    assert "artifacts" not in capfd.readouterr().err
    assert os.environ.get(name) == own


class TenTimes(gymnasium.RewardWrapper):
    """A reward on another scale."""

    def reward(self, reward):
        return 10 * float(reward)


def history(root, model="tiny"):
    events = ModelRegistry(root).history(model)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    return [(event.kind, event.source.partition("@")[0], event.champion) for event in events]


def test_only_a_better_one_becomes_champion(root):
    first = promote(root.find("fair"), "tiny", gate=GATE)
    assert (first.promoted, first.version, first.against) == (True, 1, None)
    store = root.find("fair").store()
    assert store.pinned() == {store.find(first.source.partition("@")[2]).number}, "retention keeps what is champion"
    worse = promote(root.find("poor"), "tiny", gate=GATE)
    assert (worse.promoted, worse.version, worse.against) == (False, 2, 1)
    assert root.find("poor").store().pinned() == set()
    assert worse.record["difference"] == pytest.approx(-1.5, abs=0.05)
    equal = promote(run_of_skill(root.path, "twin", 0.5, seed=7), "tiny", gate=GATE)
    assert not equal.promoted
    assert ModelRegistry(root).aliases("tiny") == {"champion": 1, "challenger": 3}
    better = promote(root.find("good"), "tiny", gate=GATE)
    assert (better.promoted, better.version) == (True, 4)
    assert ModelRegistry(root).aliases("tiny") == {"champion": 4, "challenger": 3}
    assert history(root) == [
        ("promoted", "fair", 1), ("refused", "poor", 1), ("refused", "twin", 1), ("promoted", "good", 4),
    ]  # fmt: skip


def test_everything_about_a_decision_is_kept(root):
    promote(root.find("fair"), "tiny", gate=GATE)
    decision = promote(root.find("good"), "tiny", gate=GATE)
    registry = ModelRegistry(root)
    item = registry.version("tiny", decision.version)
    [artifact] = [file.path for file in registry.client.list_artifacts(item.run_id, "promotions")]
    kept = json.loads(Path(registry.client.download_artifacts(item.run_id, artifact)).read_text())
    assert kept == json.loads(json.dumps(decision.record))
    assert len(kept["challenger"]["returns"]) == len(kept["champion"]["returns"]) == len(kept["baseline"]) == 30
    assert kept["challenger"]["configuration"] == kept["champion"]["configuration"]
    assert item.tags["rltrack.outcome"] == "promoted"
    assert "is above 0" in item.decision.reason
    rows = model_rows(registry)
    assert rows[0]["champion"]["source"].startswith("good@")
    # both played the same seeds, none of which training evaluated on
    trained_on = {seed for s in (0, 1, 2) for seed in episode_seeds(s, 50)}
    assert not trained_on & set(kept["seeds"])
    assert len(set(kept["seeds"])) == 30


def test_asking_again_plays_nothing_again(root):
    promote(root.find("fair"), "tiny", gate=GATE)
    refused = promote(root.find("poor"), "tiny", gate=GATE)
    again = promote(root.find("poor"), "tiny", gate=GATE)
    assert again.was_known
    assert (again.version, again.promoted) == (refused.version, False)
    champion = promote(root.find("fair"), "tiny", gate=GATE)
    assert champion.was_known
    assert champion.promoted
    assert len(history(root)) == 2
    floor = promote(root.find("fair"), "tiny", gate=Gate(episodes=30, floor=9999))  # another question, to be asked
    assert not floor.promoted
    assert "it stays champion, but does not reach the floor of 9999" in floor.reason
    assert promote(root.find("fair"), "tiny", gate=Gate(episodes=30, floor=1)).promoted
    assert (len(history(root)), ModelRegistry(root).aliases("tiny")) == (2, {"champion": 1, "challenger": 2})
    other = promote(root.find("poor"), "tiny", gate=Gate("not_inferior", margin=2.0, episodes=30))
    assert other.promoted  # another gate is another question
    assert not other.was_known
    assert other.version == refused.version


def test_the_floor_keeps_a_poor_first_champion_out(root):
    refused = promote(root.find("poor"), "tiny", gate=Gate(episodes=30, floor=2.0))
    assert not refused.promoted
    assert ModelRegistry(root).champion("tiny") is None
    assert promote(root.find("good"), "tiny", gate=Gate(episodes=30, floor=2.0)).promoted


def test_rollback_goes_back_step_by_step(root):
    for name in ("poor", "fair", "good"):
        promote(root.find(name), "tiny", gate=GATE)
    assert rollback(root, "tiny").version == 2
    assert rollback(root, "tiny").version == 1
    with pytest.raises(ModelNotFound, match="no earlier champion"):
        rollback(root, "tiny")
    assert rollback(root, "tiny", to=3).version == 3
    with pytest.raises(ConfigurationError, match="the champion already"):
        rollback(root, "tiny", to=3)
    assert [kind for kind, _, _ in history(root)[3:]] == ["rolled back"] * 3
    # what was taken back can be promoted again, and that is an event of its own
    rollback(root, "tiny", to=2)
    again = promote(root.find("good"), "tiny", gate=GATE)
    assert again.promoted
    assert history(root)[-1] == ("promoted", "good", 3)


def test_pruning_leaves_what_an_alias_points_to(root):
    run = root.find("fair")
    promote(run, "tiny", gate=GATE)
    for skill in (0.1, 0.15, 0.25, 0.3, 0.35):
        promote(run, "tiny", version=add_skill(run, skill), gate=GATE)
    registry = ModelRegistry(root)
    registry.point("tiny", "shadow", 2)
    gone = [registry.version("tiny", number).model_id for number in (3, 4)]
    folders = [
        Path(registry.client.get_logged_model(model_id).artifact_location.removeprefix("file://")) for model_id in gone
    ]
    assert all(folder.is_dir() for folder in folders)
    for model_id in (gone[1], registry.version("tiny", 5).model_id):
        registry.register("other", model_id, registry.version("tiny", 5).run_id, {})
    assert prune_models(root, "tiny", keep=2) == [3, 4]
    assert [folder.exists() for folder in folders] == [False, True], "the other model has one of them"
    assert prune_models(root, "other", keep=1) == [1]
    assert not folders[1].exists()
    assert [item.version for item in registry.versions("tiny")] == [1, 2, 5, 6]
    with pytest.raises(ConfigurationError, match="is champion"):
        registry.delete("tiny", registry.version("tiny", 1))
    assert prune_models(root, "tiny", keep=2) == []
    registry.point("tiny", "shadow", None)
    registry.client.set_logged_model_tags(registry.version("tiny", 2).model_id, {LINKS_TAG: "damaged"})
    told = []
    assert prune_models(root, "tiny", keep=1, notify=told.append) == [2, 5]
    assert [text.partition(":")[0] for text in told] == ["the policy of version 2 stays in MLflow"]


def test_a_killed_promotion_is_put_right(root, monkeypatch):
    promote(root.find("fair"), "tiny", gate=GATE)
    move = ModelRegistry.point

    def killed(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelRegistry, "point", killed)
    with pytest.raises(KeyboardInterrupt):
        promote(root.find("good"), "tiny", gate=GATE)
    monkeypatch.setattr(ModelRegistry, "point", move)
    assert ModelRegistry(root).aliases("tiny")[CHAMPION] == 1
    again = promote(root.find("good"), "tiny", gate=GATE)
    assert again.was_known
    assert again.promoted
    # killed after the alias was moved, before the history was written
    rollback(root, "tiny")
    monkeypatch.setattr(ModelRegistry, "record", killed)
    run = root.find("poor")
    with pytest.raises(KeyboardInterrupt):
        promote(run, "tiny", version=add_skill(run, 0.9), gate=GATE)
    monkeypatch.undo()
    registry = ModelRegistry(root)
    assert (registry.aliases("tiny")[CHAMPION], registry.history("tiny")[-1].champion) == (3, 1)
    with registry.lock("tiny", 5, print):
        pass
    assert [event[0] for event in history(root)] == ["promoted", "promoted", "rolled back", "promoted"]
    # killed after the event was written, before the description shows it
    monkeypatch.setattr("mlflow.tracking.MlflowClient.update_registered_model", killed)
    with pytest.raises(KeyboardInterrupt):
        rollback(root, "tiny")
    monkeypatch.undo()
    assert registry.client.get_registered_model("tiny").description.startswith("Champion: version 3.")
    with registry.lock("tiny", 5, print):
        pass
    shown = registry.client.get_registered_model("tiny").description
    assert shown.startswith("Champion: version 1.")
    assert "| 5&ensp;" in shown


def test_an_alias_that_somebody_else_moved_is_in_the_history(root):
    promote(root.find("fair"), "tiny", gate=GATE)
    promote(root.find("poor"), "tiny", gate=GATE)
    registry = ModelRegistry(root)
    registry.client.set_registered_model_alias("tiny", "champion", "2")
    promote(root.find("good"), "tiny", gate=GATE)
    assert [kind for kind, _, _ in history(root)] == ["promoted", "refused", "moved", "promoted"]


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"kwargs": {"noise": 0.5}}, r"environment\.kwargs"),
        ({"wrappers": ["tests.registry.test_promotion:TenTimes"]}, r"environment\.wrappers: \[\] → .*TenTimes"),
    ],
)
def test_a_challenger_of_another_environment_is_refused(root, other, key):
    promote(root.find("fair"), "tiny", gate=GATE)
    noisy = run_of_skill(root.path, "noisy", 0.2, **other)
    before = model_rows(ModelRegistry(root))
    with pytest.raises(ConfigurationError, match=key):
        promote(noisy, "tiny", gate=GATE)
    assert model_rows(ModelRegistry(root)) == before


def test_a_champion_whose_files_are_gone(root):
    promote(root.find("fair"), "tiny", gate=GATE)
    registry = ModelRegistry(root)
    model_id = registry.champion("tiny").model_id
    shutil.rmtree(registry.client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    before = model_rows(registry)
    with pytest.raises(ModelBroken, match="rollback"):
        promote(root.find("good"), "tiny", gate=GATE)
    with pytest.raises(ModelBroken):
        evaluate_champion(root, "tiny", episodes=30)
    assert model_rows(registry) == before


@pytest.mark.parametrize("bad", [math.nan, pytest.param(math.inf, marks=pytest.mark.nightly)])
def test_returns_that_are_not_numbers_change_nothing(root, monkeypatch, bad):
    promote(root.find("fair"), "tiny", gate=GATE)
    before = model_rows(ModelRegistry(root))
    step = sys.modules["tests.support.agents"].TinyEnv.step

    def broken(self, action):
        observation, reward, *rest = step(self, action)
        return observation, reward + bad, *rest

    monkeypatch.setattr("tests.support.agents.TinyEnv.step", broken)
    with pytest.raises(ConfigurationError, match="nothing was changed"):
        promote(root.find("good"), "tiny", gate=GATE)
    with pytest.raises(ConfigurationError, match="not finite"):
        evaluate_champion(root, "tiny", episodes=30)
    assert model_rows(ModelRegistry(root)) == before


def test_a_registry_that_is_down(root, monkeypatch):
    promote(root.find("fair"), "tiny", gate=GATE)
    before = model_rows(ModelRegistry(root))
    for setting, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "2")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{setting}", value)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(RegistryUnavailable, match="does not answer"):
            ModelRegistry(root).names()
    with monkeypatch.context() as patch:
        patch.setattr("rltrack.registry.promotion.store_policy", _down)
        with pytest.raises(RegistryUnavailable, match="champion is unchanged"):
            promote(root.find("good"), "tiny", gate=GATE)
    assert model_rows(ModelRegistry(root)) == before


def _down(*arguments, **keywords):
    raise ConnectionError("nobody answers")


def test_unknown_names(root):
    with pytest.raises(ModelNotFound, match="rltrack promote RUN"):
        rollback(root, "tiny")
    promote(root.find("fair"), "tiny", gate=GATE)
    with pytest.raises(ModelNotFound, match="'tiny'"):
        rollback(root, "tinny")
    with pytest.raises(ModelNotFound, match="Its versions: 1"):
        rollback(root, "tiny", to=5)
    with pytest.raises(ModelNotFound, match="Its aliases: champion"):
        ModelRegistry(root).by_alias("tiny", "champ")
    with pytest.raises(ConfigurationError, match="not allowed"):
        promote(root.find("fair"), "a/b", gate=GATE)


def test_a_run_that_cannot_be_stored(root):
    journal = root.find("fair").journal_file
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    record = decode_record(first)
    for policy, word in ((None, "describe_policy"), ({"format": 1, "reason": "It lives in JAX."}, "lives in JAX")):
        record["policy"] = policy
        journal.write_bytes(b"".join([numbered_line(encode_record(record), 1), *rest]))
        with pytest.raises(PolicyNotStorable, match=word):
            promote(root.find("fair"), "tiny", gate=GATE)


def test_fresh_seeds_are_fresh_and_repeat():
    config = {"seed": 3, "evaluation": {"episodes": 20}}
    seeds = fresh_seeds(1, ["a"], 500, [config])
    assert seeds == fresh_seeds(1, ["a"], 500, [config])
    assert seeds != fresh_seeds(1, ["b"], 500, [config])
    assert not set(seeds) & set(episode_seeds(3, 1000))


def test_watching_a_champion(root, monkeypatch):
    promote(root.find("fair"), "tiny", gate=GATE)
    fine = evaluate_champion(root, "tiny", episodes=30, moment="monday", false_alarm_rate=1e-6)
    assert not fine.degraded
    same = evaluate_champion(root, "tiny", episodes=30, moment="monday", false_alarm_rate=1e-6)
    assert same.evaluation.returns == fine.evaluation.returns
    # the world changes: each action is worth less
    step = sys.modules["tests.support.agents"].TinyEnv.step
    monkeypatch.setattr("tests.support.agents.TinyEnv.step", lambda self, action: step(self, np.asarray(action) - 0.1))
    worse = evaluate_champion(root, "tiny", episodes=30)
    assert worse.degraded
    assert worse.alarm
    assert worse.p_value < 0.001
    quiet = evaluate_champion(root, "tiny", episodes=30)
    assert quiet.degraded
    assert not quiet.alarm  # within the cool-down
    assert [kind for kind, _, _ in history(root)] == ["promoted", "degraded"]
    assert evaluate_champion(root, "tiny", episodes=30, cool_down_hours=0.0).alarm


KILL = """
import os, signal, sys
from rltrack.registry import promotion
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.runs import Root

def kill(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

owner = {"store_policy": promotion, "_carry_out": promotion}.get(sys.argv[2], ModelRegistry)
setattr(owner, sys.argv[2], kill)
promotion.promote(Root().find(sys.argv[1]), "tiny", gate=Gate(episodes=30))
"""


NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in ("describe", "_carry_out")]


@pytest.mark.parametrize("where", ["store_policy", "register", "point", *NIGHTLY])
def test_killed_anywhere_then_asked_again(root, where, forks):
    promote(root.find("fair"), "tiny", gate=GATE)
    done = subprocess.run([forks.python, "-c", KILL, "good", where], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert ModelRegistry(root).aliases("tiny")[CHAMPION] == 1
    assert promote(root.find("good"), "tiny", gate=GATE).promoted
    assert ModelRegistry(root).aliases("tiny") == {"champion": 2}
    assert history(root) == [("promoted", "fair", 1), ("promoted", "good", 2)]
