"""SIGKILL at every operation on files, and at random moments: the end is always that of a run without checkpoints."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kills import CASES

pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[2]
ALL = 100_000


def survive(mode, case, folder, *numbers, python=sys.executable):
    if "LunarLander" in CASES[case][1]["id"] and importlib.util.find_spec("Box2D") is None:
        pytest.skip("Box2D is not installed")
    done = subprocess.run(
        [python, "-m", "tests.support.kills", mode, case, str(folder), *map(str, numbers)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    logs = "\n".join(path.read_text()[-500:] for path in sorted(folder.glob("*.log"), key=os.path.getmtime)[-2:])
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{logs}"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dqn"])
def test_kills_at_some_points(case, tmp_path, forks):
    survive("at-points", case, tmp_path, 3, python=forks.python)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ppo-norm", "ppo-lunarlander"])  # the others each night
def test_some_random_kills(case, tmp_path, forks):
    survive("at-random", case, tmp_path, 6, 1, python=forks.python)


@pytest.mark.nightly
@pytest.mark.parametrize("case", ["ppo-norm", "dqn"])
def test_a_kill_at_every_point(case, tmp_path):
    survive("at-points", case, tmp_path, ALL)


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_500_random_kills(case, tmp_path):
    survive("at-random", case, tmp_path, 84, 2)
