"""A server follows the champion: promotions, rollbacks, broken versions, a registry that is gone, a pinned version."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("stable_baselines3")

from rltrack.cli import run_command
from rltrack.errors import ModelBroken, ModelNotFound
from rltrack.loopback import free_port
from rltrack.registry.champions import rollback
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.serving.following import Follower
from rltrack.tracking.destination import Destination
from tests.support.models import add_skill, run_of_skill
from tests.support.serving import Client, check_answers, started, under_load

pytestmark = pytest.mark.slow
GATE = Gate(episodes=30)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with a model of three versions: skills 0.3, 0.5 and 0.8; each test leaves version 3 champion."""
    root = Root(tmp_path_factory.mktemp("followed") / "mlruns")
    run = run_of_skill(root.path, "run", 0.3)
    promote(run, "tiny", gate=GATE)
    for skill in (0.5, 0.8):
        promote(run, "tiny", version=add_skill(run, skill), gate=GATE)
    return root


def follower_of(root, *, registry=None, pin=None):
    told: list[str] = []
    registry = registry or ModelRegistry(root)
    first = registry.by_alias("tiny", "champion") if pin is None else registry.version("tiny", pin)
    return Follower(registry, "tiny", first, "champion" if pin is None else None, told.append), told


def action(follower):
    return float(follower.served.policy.predict(np.zeros((1, 1), np.float32))[0][0, 0])


def files_of(root, version):
    registry = ModelRegistry(root)
    item = registry.version("tiny", version)
    return registry.client.get_logged_model(item.model_id).artifact_location.removeprefix("file://")


def test_promotions_and_rollbacks_are_followed(root):
    follower, told = follower_of(root)
    assert (follower.served.version, action(follower)) == (3, pytest.approx(0.8))
    event = rollback(root, "tiny")
    follower.look()
    follower.look()
    assert (follower.served.version, action(follower)) == (2, pytest.approx(0.5))
    assert follower.served.since == pytest.approx(ModelRegistry(root).history("tiny")[-1].time)
    assert told == [f"version 2 ({event.source}) is served now; before it was version 3"]
    rollback(root, "tiny", to=3)
    follower.look()
    assert follower.served.version == 3


def test_a_broken_version_is_not_served_and_tried_again(root):
    follower, told = follower_of(root)
    file = f"{files_of(root, 1)}/artifacts/policy/policy.safetensors"
    good = load_file(file)
    save_file({key: value + 1 for key, value in good.items()}, file)
    rollback_by_alias(root, 1)
    try:
        for _ in range(3):
            follower.look()
        assert (follower.served.version, follower.failures, len(told)) == (3, 1, 1)
        assert told[0].startswith("version 1 cannot be served; version 3 is still served.")
        save_file(good, file)
        follower._backoff.hurry()
        follower.look()
        assert follower.served.version == 1
    finally:
        save_file(good, file)
        rollback_by_alias(root, 3)


def rollback_by_alias(root, version):
    ModelRegistry(root).point("tiny", "champion", version)


def test_a_registry_that_is_gone_changes_nothing(root, tmp_path):
    follower, told = follower_of(root)
    reachable, gone = follower._registry, ModelRegistry(root, Destination(f"http://127.0.0.1:{free_port()}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        follower._registry = gone
        for _ in range(2):
            follower.look()
    assert (follower.served.version, follower.is_reachable, len(told)) == (3, False, 1)
    assert "does not answer; version 3 is still served" in told[0]
    follower._registry = reachable
    follower.look()
    assert follower.is_reachable
    reachable.point("tiny", "champion", None)
    try:
        follower.look()
        assert follower.served.version == 3
        assert "has no champion any more" in told[-1]
    finally:
        rollback_by_alias(root, 3)


def test_a_pinned_version_stays(root):
    follower, _ = follower_of(root, pin=2)
    assert (follower.served.version, action(follower)) == (2, pytest.approx(0.5))
    with pytest.raises(ModelNotFound, match="no version 9"):
        follower_of(root, pin=9)


def test_a_server_does_not_start_with_a_broken_version(root):
    file = f"{files_of(root, 3)}/artifacts/policy/policy.json"
    with open(file, "a") as out:
        out.write(" ")
    try:
        with pytest.raises(ModelBroken, match="is not what was stored"):
            follower_of(root)
    finally:
        with open(file, "rb+") as out:
            out.truncate(os.path.getsize(file) - 1)


def test_the_command_follows_under_load_and_ends_on_sigterm(root, tmp_path, forked, capsys):
    """The twin of the long test below: one promotion, two clients that never stop asking."""
    stop, champions = threading.Event(), [(time.monotonic(), 3)]
    with started(root.path, "tiny", tmp_path / "log") as server:
        threads = [Client(server.port, stop) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            assert server.wait_for_version(3, [[0.5]]) == [[pytest.approx(0.8)]]
            rollback_by_alias(root, 2)
            champions.append((time.monotonic(), 2))
            assert server.wait_for_version(2, [[0.5]]) == [[pytest.approx(0.5)]]
        finally:
            stop.set()
            rollback_by_alias(root, 3)
            for thread in threads:
                thread.join()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    assert check_answers(threads, [0.3, 0.5, 0.8], champions, late=60.0)
    assert "the server has ended" in (tmp_path / "log").read_text()
    assert run_command(["--root", str(root.path), "serve", "other"]) == 1
    assert "No model 'other'" in capsys.readouterr().err


@pytest.mark.nightly
def test_two_minutes_of_load_with_twenty_changes_and_an_outage(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # put back at the end: the test points it to its server
    seen = under_load(tmp_path, 120.0, 20, 20.0)
    assert (seen["failed"], seen["changes"]) == (0, 20)
