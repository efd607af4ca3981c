"""The examples, run as a reader would."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[1]
SEVEN = ["basic", "episodic", "early-stopping", "adaptive", "from-configuration", "pause-resume", "resource-monitoring"]


def run(arguments, folder, python=sys.executable, **variables):
    environment = {**os.environ, "RLTRACK_ROOT": str(folder / "mlruns"), **variables}
    result = subprocess.run(
        [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVEN)
def test_example(name, tmp_path, forks):
    python = sys.executable if name == "basic" else forks.python
    output = run([str(PROJECT / "examples" / "train_loop_usage.py"), name], tmp_path, python)
    assert re.search(r"^(completed|stopped): ", output, flags=re.MULTILINE)


def test_every_example_is_tested(monkeypatch, capsys):
    program = PROJECT / "examples" / "train_loop_usage.py"
    monkeypatch.setattr(sys, "argv", [str(program), "--list"])
    runpy.run_path(str(program), run_name="__main__")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == SEVEN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("custom_environment", "completed: all 15,000 env steps are done"),
        ("custom_agent", "the same table, bit for bit: True"),
        ("stateful_hook", "the hook ends with the same numbers: True"),
    ],
)
def test_examples_of_ones_own(name, says, tmp_path, forks):
    assert says in run([str(PROJECT / "examples" / f"{name}.py")], tmp_path, forks.python)


@pytest.mark.nightly
def test_a_resume_in_the_environment_of_the_example_is_exact(tmp_path):
    arguments = ["verify-resume", "--algo", "ppo", "--env", "custom_environment:Parking-v0"]
    arguments += ["--set", "agent.hyperparameters.n_steps=100", "--set", "agent.hyperparameters.batch_size=50"]
    output = run(["-m", "rltrack", *arguments], tmp_path, PYTHONPATH=str(PROJECT / "examples"))
    assert re.match(r"exact: .* environments by capture", output), output


@pytest.mark.nightly
def test_the_schedule_retrains(tmp_path):
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "RLTRACK_ROOT": str(tmp_path / "mlruns"), "PATH": programs}
    script = PROJECT / "examples" / "scheduled_retraining" / "run.sh"
    result = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^ +\d+ +\d{4}-", result.stdout, flags=re.MULTILINE)) >= 2, result.stdout
