"""The order of a set of texts is the same in every process that trains."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rltrack.config import TrainingConfig
from rltrack.runs import Root
from rltrack.training.train_loop import TrainingLoop
from rltrack.training.verify import verify_resume
from tests.support.agents import ScriptedAgent, TinyEnv

READ = "from rltrack import hash_seed; print(hash_seed.hash_seed())"
LATE = f"import os; os.environ['PYTHONHASHSEED'] = '5'; {READ}"
TRAIN = f"import sys; from rltrack import hash_seed; hash_seed.fix_hash_seed(sys.argv[1:]); {READ}"


def said(code, *arguments, seed=None):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    environment |= {} if seed is None else {"PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "words", "seed", "expected"),
    [
        (READ, (), "0", "0"),
        (READ, (), "7", "7"),
        (READ, (), "random", "random"),
        pytest.param(LATE, (), None, "random", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")),
        (TRAIN, ("runs",), None, "random"),
        (TRAIN, ("train", "--algo", "ppo"), None, "0"),
        (TRAIN, ("train",), "random", "random"),
    ],
)
def test_a_command_that_trains_fixes_the_seed(code, words, seed, expected):
    assert said(code, *words, seed=seed) == expected


def test_an_attempt_is_labelled_and_another_seed_is_not_exact(own_root, monkeypatch):
    for seed, total in (("random", 10), ("3", 20), ("4", 30)):
        for module in ("rltrack.provenance", "rltrack.training.session", "rltrack.training.attempt"):
            monkeypatch.setattr(f"{module}.hash_seed", lambda seed=seed: seed)
        loop = TrainingLoop(ScriptedAgent(), TinyEnv(), total_timesteps=30, name="order", resume=True, seed=0)
        loop.add_hook(_StopAt(loop, total))
        loop.run()
    run = Root(own_root).find("order")
    assert [attempt["hash_seed"] for attempt in run.attempts()] == ["random", "3", "4"]
    warnings = " ".join(run.history().warnings)
    assert "hash_seed was 3, now 4" in warnings
    assert "hash_seed was random" not in warnings
    assert run.history().hash_seed == "random"  # what the first attempt trained is in the run


class _StopAt:
    def __init__(self, loop, env_steps):
        self.loop, self.env_steps = loop, env_steps

    def on_iteration_end(self, progress, stats):
        if progress.env_steps >= self.env_steps < 30:
            self.loop.stop()


@pytest.mark.parametrize(
    ("seed", "exact"),
    [("random", False), ("0", True)],
)
@pytest.mark.nightly
def test_verify_resume_varies_what_is_not_fixed(seed, exact, monkeypatch):
    monkeypatch.setattr("rltrack.hash_seed.hash_seed", lambda: seed)
    found = verify_resume(
        TrainingConfig.from_mapping(
            {
                "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 16, "batch_size": 16}},
                "environment": {"id": "tests.support.odd_envs:OddOrderOfASet-v0"},
                "training": {"total_timesteps": 64},
            }
        ),
        kills=1,
    )
    assert (found.difference is None) is exact
