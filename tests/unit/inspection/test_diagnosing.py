"""The first cause of a failure is named: where the first NaN, infinity or error came from."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch

from rltrack.cli import run_command
from rltrack.errors import ConfigurationError
from rltrack.inspection.diagnosing import diagnose, where_to_debug
from rltrack.runs import Root
from rltrack.training.train_loop import TrainingLoop
from rltrack.training.trainer import Trainer
from tests.support.failing import OwnAgent, Steady

MODULE = "tests.support.failing"
PPO = {"n_steps": 16, "batch_size": 16, "n_epochs": 2}


def fails(root, kind, hyperparameters=None, policy=None, **environment):
    config = {
        "name": "failed",
        "agent": {
            "algorithm": "PPO",
            "hyperparameters": {**PPO, **(hyperparameters or {})},
            **({"policy": policy} if policy else {}),
        },
        "environment": {"id": f"{MODULE}:Failing{kind}-v0", **environment},
        "training": {"total_timesteps": 96, "eval_freq": 96, "checkpoint_freq": 16},
        "checkpoints": {"keep_last": 10},
    }
    trainer = Trainer(config, root=root)
    trainer.loop.delivers = False
    with contextlib.suppress(Exception):
        trainer.train()
    return Root(root).find("failed")


def extractor(name):
    return {"policy_kwargs": {"features_extractor_class": f"{MODULE}:{name}"}}


CASES = {
    "NaN reward": (("NanReward",), {}, "reward", "NanReward.step("),
    "infinite observation": (("InfiniteObservation",), {}, "observation", "the observation inf at [1]"),
    "huge learning rate": (("Steady", {"learning_rate": 1e30}), {}, "weights", "the largest weight grew to "),
    "log of zero": (("Zeros", extractor("Log")), {}, "activation", "features_extractor (Log) returned -inf"),
    "an environment that raises": (("Raises",), {}, "exception", "raised RuntimeError: the gripper is stuck"),
    "division in a wrapper": (("Steady",), {"wrappers": [f"{MODULE}:Share"]}, "reward", "Share.step("),
    "float16 overflow": (("Large", extractor("Half")), {}, "activation", "features_extractor (Half) returned inf"),
    "NaN in the value head": (
        ("Large", None, f"{MODULE}:Policy"),
        {},
        "activation",
        "value_net (BreakableHead) returned nan",
    ),
    "an action out of bounds": (
        ("Refuses",),
        {"wrappers": [f"{MODULE}:Doubling"]},
        "action",
        "(first: Doubling gave ",
    ),
    "a killed worker": (("Dies",), {"n_envs": 2, "vectorization": "subproc"}, "process", "ended with exit code -9"),
}
EVERY_TIME = ("NaN reward", "log of zero")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.nightly) for name in CASES]
)
def test_the_first_cause_is_named(case, own_root):
    given, environment, kind, text = CASES[case]
    found = diagnose(fails(own_root, *given, **environment))
    assert found.cause is not None
    assert (found.cause.kind, text in found.cause.text) == (kind, True), found.cause
    assert found.notes == ()


def test_a_diagnosis_from_the_start_says_nothing_of_its_own_copy(own_root, caplog):
    run = fails(own_root, "Steady", {"learning_rate": 1e30})
    caplog.clear()
    found = diagnose(run)
    assert found.begin is None
    assert found.cause is not None
    assert found.cause.text.endswith("value_loss is inf, and so is loss")
    assert "Started again from zero" not in caplog.text


def test_a_script_repeats_the_episode_without_rltrack(own_root, capsys, forked):
    run = fails(own_root, "Raises")
    assert run_command(["diagnose", "failed"]) == 1
    said = capsys.readouterr().out
    assert "first cause (exception) at " in said
    script = run.exports / "repeat_episode.py"
    assert "import rltrack" not in script.read_text()
    again = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert again.returncode == 1
    assert again.stderr.strip().endswith("RuntimeError: the gripper is stuck")
    assert f"Repeats the {len(again.stdout.splitlines()) + 1} action(s)" in script.read_text()


def test_nothing_is_found_where_nothing_is_wrong(own_root, capsys):
    fails(own_root, "Steady")
    assert run_command(["diagnose", "failed", "--at", "40", "--until", "64"]) == 0
    assert "nothing found: 32 to 64 env steps, from v2" in capsys.readouterr().out


def own_loop(root):
    return TrainingLoop(
        OwnAgent(), Steady(), total_timesteps=40, name="own", root=root, resume=True, video=False, sinks=[]
    )


def test_an_agent_of_another_library_is_diagnosed_by_its_script(own_root):
    with contextlib.suppress(Exception):
        own_loop(own_root).run()
    run = Root(own_root).find("own")
    with pytest.raises(ConfigurationError, match="agent of its own"):
        diagnose(run)
    found = diagnose(run, make_loop=own_loop)
    assert found.cause.kind == "gradient"
    assert "returned nan values in its 0th output. Its forward pass is in net, " in found.cause.text
    assert "failing.py:" in found.cause.text
    assert "torch.sqrt(values * 0)" in found.cause.text
    assert not torch.is_anomaly_enabled()
    entry = where_to_debug(found.error)
    while entry.tb_next is not None:
        entry = entry.tb_next
    assert entry.tb_frame.f_code.co_name == "advance", "not in the watch"
    [note] = [note for note in found.notes if "not an agent of Stable-Baselines3" in note]
    assert "its environments, and of its attributes 1 torch modules (net) and 1 optimizers" in note
    assert [row["env steps"] for row in found.sizes] == [10, 20, 30]
    assert found.sizes[0].keys() == {"env steps", "activation", "gradient norm", "weight", "learning rate"}
