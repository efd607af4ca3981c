"""The command line over a registry, on the root's own database, and on a server with PostgreSQL behind it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("stable_baselines3")

from rltrack.cli import run_command
from rltrack.registry.champions import evaluate_champion, prune_models, rollback
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.tracking.destination import Destination, write_destination
from tests.support.models import add_skill, run_of_skill
from tests.support.servers import MlflowServer, postgres_database

SMALL = ["--model", "tiny", "--episodes", "30"]


def said(capsys):
    return capsys.readouterr().out


@pytest.mark.slow
def test_what_a_person_types(own_root, capsys):
    run_of_skill(own_root, "fair", 0.5)
    poor = run_of_skill(own_root, "poor", 0.2)
    assert run_command(["models"]) == 0
    assert "No models yet" in said(capsys)
    assert run_command(["promote", "fair", *SMALL, "--floor", "2"]) == 0
    assert "is champion: version 1 of 'tiny'" in said(capsys)
    assert run_command(["promote", "poor", *SMALL]) == 4
    assert "was not promoted" in said(capsys)
    assert run_command(["promote", "poor", *SMALL]) == 4
    assert "decided before" in said(capsys)
    better = add_skill(poor, 0.9)
    assert run_command(["promote", f"poor@{better}", *SMALL, "--json"]) == 0
    assert json.loads(said(capsys))["promoted"] is True
    assert run_command(["models", "--json"]) == 0
    [model] = json.loads(said(capsys))
    assert (model["champion"]["version"], model["challenger"]["version"]) == (3, 2)
    assert [event["kind"] for event in model["history"]] == ["promoted", "refused", "promoted"]
    assert run_command(["rollback", "tiny"]) == 0
    assert "Version 1 (fair@" in said(capsys)
    assert run_command(["evaluate-champion", "tiny", "--episodes", "30", "--false-alarm-rate", "1e-6"]) == 0
    assert "is as it was" in said(capsys)
    assert run_command(["prune-models", "tiny"]) == 0
    assert "Nothing to delete" in said(capsys)
    assert run_command(["models"]) == 0
    assert "models:/NAME@champion" in said(capsys)


@pytest.mark.parametrize(
    ("command", "code", "word"),
    [
        (["promote", "nothing", "--model", "x"], 1, "No run 'nothing'"),
        (["promote", "x", "--model", "x", "--gate", "best"], 2, "superior, not-inferior"),
        (["promote", "x", "--model", "x", "--gate", "not-inferior"], 2, "needs a margin"),
        (["promote", "x", "--model", "x", "--episodes", "5"], 2, "at least 30"),
        (["rollback", "nothing"], 1, "There are no models yet"),
        (["serve", "nothing"], 1, "There are no models yet"),
        (["evaluate-champion", "nothing"], 1, "There are no models yet"),
        (["compare", "nothing", "other"], 1, "No run 'nothing'"),
    ],
)
def test_bad_input(own_root, capsys, command, code, word):
    assert run_command(command) == code
    assert word in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_with_postgresql(own_root, tmp_path):
    with postgres_database() as database:
        server = MlflowServer(tmp_path / "server", database).start()
        try:
            root = Root(own_root)
            for name, skill in (("fair", 0.5), ("good", 0.8)):
                run = run_of_skill(own_root, name, skill)
                write_destination(run, Destination(server.uri, "tiny"))
            gate = Gate(episodes=30)
            told: list[str] = []
            assert promote(root.find("fair"), "tiny", gate=gate, notify=told.append).promoted
            assert f"MLFLOW_TRACKING_URI={server.uri}" in told[0], "the other commands look elsewhere"
            assert promote(root.find("good"), "tiny", gate=gate).promoted
            worse = add_skill(root.find("good"), 0.1)
            assert not promote(root.find("good"), "tiny", version=worse, gate=gate).promoted
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_TRACKING_URI", server.uri)
                registry = ModelRegistry(root)
                assert not registry.is_own
                assert registry.aliases("tiny") == {"champion": 2, "challenger": 3}
                assert [event.kind for event in registry.history("tiny")] == ["promoted", "promoted", "refused"]
                assert not evaluate_champion(root, "tiny", episodes=30, moment="monday", false_alarm_rate=1e-6).degraded
                assert rollback(root, "tiny").version == 1
                assert prune_models(root, "tiny", keep=1) == [2]
                import mlflow

                loaded = mlflow.pyfunc.load_model("models:/tiny@champion")
                import numpy as np

                assert loaded.predict(np.zeros((2, 1), np.float32)).tolist() == [[0.5], [0.5]]
        finally:
            server.kill()
