"""Several seeds of one configuration: trained in processes, gone on with, looked at as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("stable_baselines3")

from rltrack.cli import run_command
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, NameTaken
from rltrack.runs import Root
from rltrack.studies.jobs import Job, run_jobs
from rltrack.studies.seeds import train_seeds


def config(steps: int = 256, **more) -> TrainingConfig:
    return TrainingConfig.from_mapping(
        {
            "name": "small",
            "agent": {
                "algorithm": "PPO",
                "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
                "device": "cpu",
            },
            "environment": {"id": "CartPole-v1"},
            "training": {"total_timesteps": steps, "eval_freq": max(steps // 2, 1)},
            "evaluation": {"episodes": 3},
            "tracking": {"video": False},
            **more,
        }
    )


def test_jobs_run_so_many_at_a_time_and_one_that_fails_stops_no_other(tmp_path):
    code = "import sys, time; time.sleep(0.3); print('said'); sys.exit(int(sys.argv[1]))"
    jobs = [Job(f"job{n}", [sys.executable, "-c", code, str(n % 2)], tmp_path / f"{n}.log") for n in range(5)]
    events: list[str] = []
    codes = run_jobs(jobs, 2, events.append)
    assert codes == {"job0": 0, "job1": 1, "job2": 0, "job3": 1, "job4": 0}
    running = most = 0
    for event in events:
        running += 1 if event.endswith("started") else -1
        most = max(most, running)
    assert most == 2
    assert (tmp_path / "3.log").read_text() == "said\n"


def test_commands_beside_each_other_see_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    code = "import os, time; time.sleep(0.5); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    jobs = [Job(f"job{n}", [sys.executable, "-c", code], tmp_path / f"{n}.log") for n in range(4)]
    run_jobs(jobs, 2, lambda text: None)
    assert [(tmp_path / f"{n}.log").read_text().strip() for n in range(2)] == ["3", "5"]
    assert sorted((tmp_path / f"{n}.log").read_text().strip() for n in (2, 3)) == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run_jobs([Job("none", [sys.executable, "-c", code], tmp_path / "none.log")], 1, lambda text: None)
    assert (tmp_path / "none.log").read_text().strip() == ""


@pytest.mark.parametrize(("seeds", "jobs"), [([], 1), ([1, 1], 1), ([-1], 1), ([0], 0)])
def test_what_makes_no_sense_is_refused(own_root, seeds, jobs):
    with pytest.raises(ConfigurationError):
        train_seeds(config(), seeds, Root(own_root), jobs=jobs)
    assert not own_root.exists()


def test_an_agent_that_cannot_be_built_is_refused_before_anything_starts(own_root, capsys):
    for command in (["study"], ["flow", "train"]):
        assert run_command([*command, "--algo", "ppo", "--env", "Nope-v1"]) == 2
        assert "Nope" in capsys.readouterr().err.splitlines()[-1]
        assert not own_root.exists()


@pytest.mark.slow
def test_seeds_are_runs_of_one_group(own_root, tmp_path, capsys, forked):
    file = tmp_path / "small.yaml"
    file.write_text(config().to_yaml())
    assert run_command(["study", str(file), "--seeds", "2", "--jobs", "2"]) == 0
    out = capsys.readouterr()
    assert "final IQM" in out.out
    assert "2 seeds" in out.out
    root = Root(own_root)
    assert root.names() == ["small-s0", "small-s1"]
    assert [root.find(name).read_config()["seed"] for name in root.names()] == [0, 1]
    assert all(root.find(name).read_config()["tracking"]["tags"] == {"rltrack.study": "small"} for name in root.names())
    # once more with a third: what is finished is left alone
    assert run_command(["study", str(file), "--seeds", "3"]) == 0
    said = capsys.readouterr().err
    assert said.count("finished before") == 2
    assert root.names() == ["small-s0", "small-s1", "small-s2"]
    with pytest.raises(NameTaken, match="total_timesteps"):
        train_seeds(config(512), [7, 0], root)
    assert not root.exists("small-s7")  # nothing was started


@pytest.mark.nightly
def test_stopped_it_goes_on(own_root, tmp_path):
    file = tmp_path / "long.yaml"
    file.write_text(config(24_000, checkpoints={}).to_yaml())
    command = [sys.executable, "-m", "rltrack", "study", str(file), "--seeds", "2", "--jobs", "2"]
    study = subprocess.Popen(
        command, env={**os.environ, "RLTRACK_ROOT": str(own_root)}, stderr=subprocess.PIPE, text=True
    )
    root = Root(own_root)
    deadline = time.monotonic() + 120
    while not (
        len(root.names()) == 2
        and all(root.find(name).is_locked() and root.find(name).attempts() for name in root.names())
    ):
        assert time.monotonic() < deadline
        assert study.poll() is None, study.stderr.read()
        time.sleep(0.1)
    time.sleep(1.0)
    study.send_signal(signal.SIGTERM)
    assert study.wait(60) == 3
    assert {root.find(name).status().state for name in root.names()} == {"stopped"}
    assert not any(root.find(name).is_locked() for name in root.names())
    shorter = subprocess.run(
        command, env={**os.environ, "RLTRACK_ROOT": str(own_root)}, capture_output=True, text=True, timeout=280
    )
    assert shorter.returncode == 0, shorter.stderr
    assert all(len(root.find(name).attempts()) == 2 for name in root.names())
