"""Searching: what is searched, which trials there are, and that killing anything loses and repeats nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

pytest.importorskip("stable_baselines3")
pytest.importorskip("optuna")

from rltrack.agents.factory import check
from rltrack.cli import run_command
from rltrack.errors import ConfigurationError, RunBusy
from rltrack.files import take_lock
from rltrack.runs import Root
from rltrack.studies.search import Search
from rltrack.studies.space import check_space, full_key, read_sweep
from rltrack.studies.sweep import sweep_here, trial_rows, write_best
from rltrack.studies.trials import run_trial, train_here
from tests.support.extras import needs


def training(steps: int = 256, **more):
    return {
        "seed": 3,
        "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 2}, "device": "cpu"},
        "environment": {"id": "CartPole-v1"},
        "training": {"total_timesteps": steps, "eval_freq": steps // 4, "checkpoint_freq": steps // 8},
        "evaluation": {"episodes": 2},
        "tracking": {"video": False},
        **more,
    }  # fmt: skip


def section(**more):
    return {"parameters": {"learning_rate": {"float": [1e-4, 1e-2], "log": True}}, "trials": 3, "pruner": "none",
            "sampler": "random", **more}  # fmt: skip


def search(tmp_path, root, name="small", base=None, **more):
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**(base or training()), "sweep": section(**more)}))
    found, wanted = read_sweep(file)
    check_space(found, wanted)
    return Search(name, Root(root)).open(found, wanted)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"parameters": {}}, "nothing to search"),
        ({"parameters": {"learning_rate": {"float": [1, 0.1]}}}, "lower end first"),
        ({"parameters": {"learning_rate": {"float": [0, 0.1], "log": True}}}, "must start above 0"),
        ({"parameters": {"learning_rat": {"float": [0.1, 0.2]}}}, "learning_rate"),
        ({"parameters": {"training.total_timesteps": {"int": [-1, 5]}}}, "total_timesteps = -1"),
        ({"parameters": {"seed": {"choice": [1, 2]}}}, "sweep.seeds"),
        ({"parameters": {"n_epochs": {"choice": []}}}, "at least 1"),
        ({"sampler": "grid"}, "a step, or choices"),
        ({"sampler": "tpee"}, "sweep"),
        ({"sampler": {"tpe": {"n_startup": 3}}}, "n_startup_trials"),
        ({"pruner": {"median": {"n_warmup": 3}}}, "n_warmup_steps"),
        ({"trails": 3}, "trials"),
        ({"sampler": {}}, "name one"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(tmp_path, own_root, more, words):
    with pytest.raises(ConfigurationError, match=words):
        search(tmp_path, own_root, **more)
    assert not own_root.exists(), "nothing was made"


def test_a_file_without_a_sweep_and_a_name_without_one_say_what_to_do(tmp_path, own_root):
    file = tmp_path / "plain.yaml"
    file.write_text(yaml.safe_dump(training()))
    with pytest.raises(ConfigurationError, match="no section 'sweep'"):
        read_sweep(file)
    search(tmp_path, own_root)
    with pytest.raises(ConfigurationError, match=r"Did you mean 'small'\? Known here: small\."):
        Search("smal", Root(own_root)).open()
    assert os.listdir(own_root / "studies") == ["small"], "asking makes nothing"


def test_train_says_that_a_sweeps_file_is_one(tmp_path, own_root, capsys):
    file = tmp_path / "swept.yaml"
    file.write_text(yaml.safe_dump({**training(), "sweep": section()}))
    assert run_command(["train", str(file)]) == 2
    assert f"rltrack sweep {file}" in capsys.readouterr().err


def test_names_of_parameters():
    assert full_key("learning_rate") == "agent.hyperparameters.learning_rate"
    assert full_key("learning_rate.linear") == "agent.hyperparameters.learning_rate.linear"
    assert full_key("environment.n_envs") == "environment.n_envs"


@pytest.mark.slow
def test_a_grid_visits_every_combination_once(tmp_path, own_root):
    parameters = {
        "n_epochs": {"int": [1, 3]},
        "policy_kwargs": {"choice": [{"net_arch": [8]}, {"net_arch": [16]}]},
        "clip_range": {"float": [0.1, 0.3], "step": 0.1},
    }
    found = search(tmp_path, own_root, sampler="grid", parameters=parameters, trials=None)
    assert len(found.trials()) == 18
    seen = {json.dumps(found.begin(number)[1], sort_keys=True) for number in range(18)}
    assert len(seen) == 18
    assert sum('"agent.hyperparameters.policy_kwargs": {"net_arch": [8]}' in item for item in seen) == 9


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
@pytest.mark.slow
def test_a_trial_that_is_taken_up_again_has_the_same_values(tmp_path, own_root, sampler):
    found = search(tmp_path, own_root, sampler=sampler)
    values = [found.begin(number)[1] for number in range(3)]
    assert len({repr(item) for item in values}) == 3, "each trial has a stream of its own"
    again = Search("small", Root(own_root)).open()
    assert [again.begin(number)[1] for number in (2, 0, 1)] == [values[2], values[0], values[1]]
    with pytest.raises(ConfigurationError, match="0 to 2"):
        again.begin(3)


def test_a_sweep_goes_on_with_more_trials_but_not_with_another_training(tmp_path, own_root):
    search(tmp_path, own_root)
    assert len(search(tmp_path, own_root, trials=5).trials()) == 5
    with pytest.raises(ConfigurationError, match="total_timesteps: 256 → 512"):
        search(tmp_path, own_root, base=training(512))
    with pytest.raises(ConfigurationError, match=r"sweep\.seeds"):
        search(tmp_path, own_root, seeds=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "env_id"),
    [("PPO", "CartPole-v1"), ("A2C", "CartPole-v1"), ("DQN", "CartPole-v1"), ("SAC", "Pendulum-v1"), ("TD3", "Pendulum-v1"),
     ("DDPG", "Pendulum-v1"), ("TQC", "Pendulum-v1"), ("QRDQN", "CartPole-v1"), ("TRPO", "CartPole-v1"),
     ("RecurrentPPO", "CartPole-v1"), ("ARS", "CartPole-v1")],
)  # fmt: skip
def test_rl_zoo3s_spaces_make_valid_trainings(tmp_path, own_root, algorithm, env_id):
    needs("rl_zoo3")
    pytest.importorskip("sb3_contrib")
    policy = {"RecurrentPPO": "MlpLstmPolicy", "ARS": "LinearPolicy"}.get(algorithm, "MlpPolicy")
    base = training(agent={"algorithm": algorithm, "policy": policy}, environment={"id": env_id})
    found = search(tmp_path, own_root, base=base, parameters={}, space="zoo")
    for number in range(3):
        _, values = found.begin(number)
        assert len(values) > 2
        check(found.configs(number, values)[0])


@pytest.mark.slow
def test_the_command_searches_and_writes_the_best_which_train_takes(tmp_path, own_root, capsys, forked):
    file = tmp_path / "found.yaml"
    file.write_text(yaml.safe_dump({**training(), "sweep": section(seeds=2)}))
    assert run_command(["sweep", str(file), "--jobs", "2"]) == 0
    said = capsys.readouterr()
    assert "3 trials: 3 complete" in said.out
    assert "best.yaml" in said.out
    root = Root(own_root)
    assert len(root.names()) == 6
    assert {root.find(name).read_config()["seed"] for name in root.names()} == {3, 4}
    tags = root.find("found-t0001-s1").read_config()["tracking"]["tags"]
    assert tags == {"rltrack.study": "found", "rltrack.trial": "1"}
    rows = trial_rows(Search("found", root).open())
    for row in rows:
        means = [root.find(name).status().mean_return for name in row["runs"]]
        assert row["value"] == pytest.approx(sum(means) / 2)
    folder = own_root / "studies" / "found"
    assert {path.name for path in folder.glob("*.png")} >= {"history.png", "curves.png", "slices.png"}
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["agent"]["hyperparameters"]["learning_rate"] == rows[0]["values"]["learning_rate"]
    assert run_command(["train", str(folder / "best.yaml"), "--name", "again"]) == 0
    assert root.find("again").status().mean_return == root.find(rows[0]["runs"][0]).status().mean_return
    capsys.readouterr()
    assert run_command(["sweep", "--name", "found", "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == best


@pytest.mark.slow
def test_bad_values_fail_their_trial_only_and_pruned_ones_stop_at_a_boundary(tmp_path, own_root, forked):
    parameters = {"learning_rate": {"choice": [1.0e-3, 1.0e30]}}
    found = search(tmp_path, own_root, sampler="grid", parameters=parameters, trials=None)
    assert sweep_here(found, jobs=1, console=False, notify=lambda text: None) == []
    rows = {row["trial"]: row for row in trial_rows(found)}
    assert rows[0]["state"] == "complete"
    assert rows[1]["state"] == "failed"
    assert "TrainingDiverged" in rows[1]["reason"]
    # a pruner that wants more than CartPole gives prunes at its first look
    found = search(tmp_path, own_root, "pruned", trials=1, pruner={"median": {"n_startup_trials": 0}})
    found.study.pruner = found.optuna.pruners.ThresholdPruner(lower=1000.0)
    result = run_trial(found, 0, train_here(found, console=False))
    assert result.state == "pruned"
    run = Root(own_root).find("pruned-t0000")
    assert run.status().env_steps == 64
    assert run.status().is_finished
    assert [trial.state.name for trial in found.trials()] == ["PRUNED"]
    assert write_best(found) is None


@pytest.mark.slow
def test_what_a_machine_lacks_is_not_the_trials_fault(tmp_path, own_root, monkeypatch):
    monkeypatch.delenv("RLTRACK_SIGNING_KEY", raising=False)
    base = training(checkpoints={"store": f"file://{tmp_path}/store"})
    found = search(tmp_path, own_root, base=base)
    with pytest.raises(ConfigurationError, match="RLTRACK_SIGNING_KEY"):
        run_trial(found, 0, train_here(found, console=False))
    assert found.unfinished() == [0, 1, 2]


def test_one_sweep_is_carried_out_by_one_command_at_a_time(tmp_path, own_root):
    found = search(tmp_path, own_root)
    found.folder.mkdir(parents=True, exist_ok=True)
    held = take_lock(found.folder / "lock", wait_seconds=1.0)
    try:
        with pytest.raises(RunBusy, match="Another process"):
            sweep_here(found, jobs=1, console=False, notify=lambda text: None)
    finally:
        os.close(held)


def test_two_that_start_one_sweep_at_the_same_time_make_its_trials_once(tmp_path, own_root):
    grid = {"sampler": "grid", "parameters": {"learning_rate": {"choice": [1e-4, 1e-3, 1e-2]}}}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**training(), "sweep": section(**grid, trials=None)}))
    found, wanted = read_sweep(file)
    ready = threading.Barrier(4)

    def start(_):
        opened = Search("grid", Root(own_root))
        ready.wait()
        return [trial.system_attrs["fixed_params"]["learning_rate"] for trial in opened.open(found, wanted).trials()]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(start, range(4))) == [[1e-4, 1e-3, 1e-2]] * 4


def test_showing_a_sweep_starts_and_changes_nothing(tmp_path, own_root, capsys):
    file = tmp_path / "shown.yaml"
    file.write_text(yaml.safe_dump({**training(), "sweep": section()}))
    elsewhere = tmp_path / "other.db"
    for words in ([str(file)], ["--name", "shown"], ["--name", "shown", "--storage", f"sqlite:///{elsewhere}"]):
        assert run_command(["sweep", *words, "--show"]) == 2
        assert "No sweep 'shown'" in capsys.readouterr().err
    assert run_command(["sweep", "--name", "shown", "--storage", f"sqlite:///{elsewhere}"]) == 2
    assert not elsewhere.exists()
    assert not (own_root / "studies").exists()
    search(tmp_path, own_root, "shown")
    assert run_command(["sweep", "--name", "shown", "--trials", "5", "--show"]) == 2
    assert "--show only prints" in capsys.readouterr().err
    for words in ([str(file)], ["--name", "shown"]):
        assert run_command(["sweep", *words, "--show"]) == 0
        assert "3 trials: 3 waiting" in capsys.readouterr().out
    assert len(Search("shown", Root(own_root)).open().trials()) == 3
    assert Root(own_root).names() == []


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment_it_loses_and_repeats_nothing(tmp_path, own_root, jobs):
    undisturbed = search(tmp_path, tmp_path / "whole", "twin", base=training(8192), trials=4)
    assert sweep_here(undisturbed, jobs=2, console=False, notify=lambda text: None) == []
    command = [sys.executable, "-m", "rltrack", "sweep", str(tmp_path / "twin.yaml"), "--jobs", str(jobs)]
    environment = {**os.environ, "RLTRACK_ROOT": str(own_root)}
    dice, kills = random.Random(jobs), 0
    deadline = time.monotonic() + 400
    while True:
        assert time.monotonic() < deadline
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if kills < 4:
            if kills % 2 == 0:  # in the middle of a training, and at any other moment
                _wait_for_training(Root(own_root), process)
            time.sleep(dice.uniform(0.1, 1.0) if kills % 2 == 0 else dice.uniform(2, 8))
        if kills >= 4 or process.poll() is not None:
            out, _ = process.communicate(timeout=300)
            assert process.returncode == 0, out
            break
        kills += 1
        for child in [process.pid, *_children_of(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.communicate()
    ours, theirs = (
        {row["trial"]: (row["state"], row["value"], row["values"]) for row in trial_rows(item)}
        for item in (Search("twin", Root(own_root)).open(), undisturbed)
    )
    assert kills >= 2
    assert ours == theirs
    names = [f"twin-t{number:04d}" for number in range(4)]
    assert Root(own_root).names() == names
    assert any(len(Root(own_root).find(name).attempts()) > 1 for name in names)
    assert all(attempt["exact"] for name in names for attempt in Root(own_root).find(name).attempts())


def _wait_for_training(root: Root, process: subprocess.Popen) -> None:
    """Wait until a run is under way, or everything is done."""
    while process.poll() is None and not any(run.is_locked() and run.attempts() for run in root.runs()):
        time.sleep(0.02)


def _children_of(pid: int) -> list[int]:
    import psutil

    try:
        found = psutil.Process(pid).children(recursive=True)
        return [child.pid for child in found if "shipper" not in " ".join(child.cmdline())]
    except psutil.Error:  # one of them has just ended
        return []
