"""A project of one's own: its script and its configuration are equal to each other, and to every command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("stable_baselines3")
from rltrack import TrainingLoop
from rltrack.cli import app
from rltrack.config import TrainingConfig
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, load_agent

PROJECT = Path(__file__).resolve().parents[1] / "examples" / "own_project"
STEPS = 768


@pytest.fixture
def script(monkeypatch):
    """The module train.py, imported as it is in its folder."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.syspath_prepend(str(PROJECT))
    before, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)  # as rltrack has it: bits depend on it
    import train

    yield train
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("tank", "train"):
            del sys.modules[name]


def rltrack(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code in (0, 4), done.output
    return done.output


@pytest.mark.slow
def test_the_script_the_same_by_configuration_and_all_commands(script, own_root, tmp_path, monkeypatch):
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "tank")  # a stored policy names the extractor's module
    model, callbacks = script.build()
    model.learn(STEPS, callback=callbacks)
    learned = model.policy.state_dict()

    options = {
        "total_timesteps": STEPS,
        "eval_freq": 256,
        "eval_episodes": 2,
        "name": "tank",
        "resume": True,
        "video": False,
        "make_env": script.make_tank,
    }
    model, callbacks = script.build()
    loop = TrainingLoop(model, callbacks=callbacks, **options)
    loop.add_hook(type("Stop", (), {"on_evaluation_end": lambda self, progress, evaluation: loop.stop("half")})())
    loop.run()
    assert loop.progress.env_steps == 256
    model, callbacks = script.build()
    TrainingLoop(model, callbacks=callbacks, **options).run()
    assert all(torch.equal(learned[name], value) for name, value in model.policy.state_dict().items())
    assert Root().find("tank").attempts()[-1]["exact"]

    config = TrainingConfig.from_file(
        PROJECT / "tank.yaml", [f"training.total_timesteps={STEPS}", "evaluation.episodes=2"]
    )
    Trainer(config).train()
    configured = load_agent("tank-by-configuration", "last").policy.state_dict()
    assert all(torch.equal(learned[name], value) for name, value in configured.items())

    printed = rltrack("config", "--from-run", "tank")
    assert "- tank.callbacks:HighestLevel" in printed
    assert json.loads(rltrack("eval", "tank", "--episodes", 2, "--json"))["version"].startswith("v")
    played = rltrack("eval", "tank-by-configuration", "--episodes", 2)
    assert "success rate " in played
    assert "mean mean_error " in played, "one of its environment.info_keywords"
    assert "tank-by-configuration" in rltrack("compare", "tank", "tank-by-configuration", "--output", tmp_path / "page")
    assert "champion" in rltrack("promote", "tank", "--model", "tank", "--episodes", 30)
    assert "champion" in rltrack("promote", "tank-by-configuration", "--model", "tank", "--episodes", 30)
