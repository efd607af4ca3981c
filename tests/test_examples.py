"""The examples, run as a reader would."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import types
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


LESS = (
    ("total_timesteps=4_000, eval_freq=2_000", "total_timesteps=512, eval_freq=256"),
    ('"total_timesteps": 4_000', '"total_timesteps": 512'),
    ('"eval_freq": 2_000', '"eval_freq": 256'),
    ("total_episodes=60, eval_freq=20", "total_episodes=12, eval_freq=6"),
    ("total_timesteps=20_000, eval_freq=1_000", "total_timesteps=768, eval_freq=256"),
    ("total_timesteps=10_000,\n        eval_freq=1_000", "total_timesteps=768,\n        eval_freq=256"),
    ("total_timesteps=6_000", "total_timesteps=512"),
    ("time.sleep(2)", "time.sleep(0.5)"),
    ("time.sleep(1)", "time.sleep(0.1)"),
    ("total_timesteps=15_000, eval_freq=5_000", "total_timesteps=1_000, eval_freq=500"),
    ('"total_episodes": 3_000', '"total_episodes": 300'),
    ('"eval_freq": 1_000', '"eval_freq": 100'),
    ('"eval_episodes": 100', '"eval_episodes": 10'),
    ('"checkpoint_freq": 500', '"checkpoint_freq": 50'),
    ("progress.episodes == 1_700", "progress.episodes == 170"),
    ("total_timesteps=30_000", "total_timesteps=1_536"),
    ("StopAt(first, 4_000)", "StopAt(first, 768)"),
)
"""Budgets that are cut in `make test`; each night the examples are run as they are, each in a process of its own."""


def run_here(name, arguments, folder, monkeypatch, capsys):
    """Run an example in this process, with small budgets; return what it prints."""
    text = (PROJECT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    for whole, less in LESS:
        text = text.replace(whole, less)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVEN)
def test_example_with_a_small_budget(name, tmp_path, monkeypatch, capsys):
    output = run_here("train_loop_usage", [name], tmp_path, monkeypatch, capsys)
    assert re.search(r"^(completed|stopped): ", output, flags=re.MULTILINE)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SEVEN)
def test_example(name, tmp_path):
    output = run([str(PROJECT / "examples" / "train_loop_usage.py"), name], tmp_path)
    assert re.search(r"^(completed|stopped): ", output, flags=re.MULTILINE)


def test_every_example_is_tested(monkeypatch, capsys):
    program = PROJECT / "examples" / "train_loop_usage.py"
    monkeypatch.setattr(sys, "argv", [str(program), "--list"])
    runpy.run_path(str(program), run_name="__main__")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == SEVEN


OWN = {
    "custom_environment": "completed: all 15,000 env steps are done",
    "custom_agent": "the same table, bit for bit: True",
    "stateful_hook": "the hook ends with the same numbers: True",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_example_of_ones_own_with_a_small_budget(name, tmp_path, monkeypatch, capsys):
    assert OWN[name].replace("15,000", "1,000") in run_here(name, [], tmp_path, monkeypatch, capsys)


@pytest.mark.nightly
@pytest.mark.parametrize("name", OWN)
def test_example_of_ones_own(name, tmp_path):
    assert OWN[name] in run([str(PROJECT / "examples" / f"{name}.py")], tmp_path)


@pytest.mark.nightly
def test_a_resume_in_the_environment_of_the_example_is_exact(tmp_path):
    arguments = ["verify-resume", "--algo", "ppo", "--env", "custom_environment:Parking-v0"]
    arguments += ["--set", "agent.hyperparameters.n_steps=100", "--set", "agent.hyperparameters.batch_size=50"]
    output = run(["-m", "rltrack", *arguments], tmp_path, PYTHONPATH=str(PROJECT / "examples"))
    assert re.search(r"^exact: .* environments by capture", output, flags=re.MULTILINE), output


@pytest.mark.nightly
def test_the_schedule_retrains(tmp_path):
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "RLTRACK_ROOT": str(tmp_path / "mlruns"), "PATH": programs}
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):  # of a server that other tests share
        environment.pop(name, None)
    script = PROJECT / "examples" / "scheduled_retraining" / "run.sh"
    result = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^ +\d+ +\d{4}-", result.stdout, flags=re.MULTILINE)) >= 2, result.stdout
