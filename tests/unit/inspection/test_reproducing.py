"""A run is trained again between its versions: the same bits, or the first record and tensor that differ."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import shutil

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

from rltrack.checkpoints.difference import first_difference
from rltrack.checkpoints.version import MANIFEST, seal, unseal
from rltrack.cli import run_command
from rltrack.errors import ConfigurationError, RltrackError
from rltrack.inspection.reproducing import reproduce, require_reproduced, stretches
from rltrack.inspection.scratch import copy_run, quiet_config
from rltrack.inspection.stretch import Stretch, repeat
from rltrack.journal import read_journal
from rltrack.journal.lines import decode_line, encode_record, numbered_line
from rltrack.runs import Root
from rltrack.runs.folder import CERTIFICATE
from rltrack.training.train_loop import TrainingLoop
from rltrack.training.trainer import Trainer
from tests.support.agents import TinyEnv

ALGORITHMS = {
    "PPO": {"n_steps": 16, "batch_size": 16, "n_epochs": 2},
    "A2C": {"n_steps": 8},
    "DQN": {"learning_starts": 20, "buffer_size": 100},
    "SAC": {"learning_starts": 20, "buffer_size": 100},
    "TD3": {"learning_starts": 20, "buffer_size": 100},
    "DDPG": {"learning_starts": 20, "buffer_size": 100},
    "QRDQN": {"learning_starts": 20, "buffer_size": 100},
    "TQC": {"learning_starts": 20, "buffer_size": 100},
    "TRPO": {"n_steps": 16, "batch_size": 16},
    "RecurrentPPO": {"n_steps": 16, "batch_size": 16, "n_epochs": 2},
    "MaskablePPO": {"n_steps": 16, "batch_size": 16, "n_epochs": 2},
    "ARS": {"n_delta": 2},
}
CONTRIB = ("QRDQN", "TQC", "TRPO", "RecurrentPPO", "MaskablePPO", "ARS")
POLICIES = {"RecurrentPPO": "MlpLstmPolicy", "ARS": "LinearPolicy"}
MASKED = {"id": "sb3_contrib.common.envs:InvalidActionEnvDiscrete", "kwargs": {"dim": 8, "n_invalid_actions": 4}}
SETTINGS = {
    "environments in processes": {"environment": {"id": "CartPole-v1", "n_envs": 2, "vectorization": "subproc"}},
    "the adaptive strategy": {"training": {"strategy": "adaptive"}},
    "evaluation beside training": {"evaluation": {"beside_training": True}},
}


def trained(root, algorithm="PPO", name="again", **more):
    if algorithm in CONTRIB:
        pytest.importorskip("sb3_contrib")
    continuous = algorithm in ("SAC", "TD3", "DDPG", "TQC")
    policy = POLICIES.get(algorithm, "MlpPolicy")
    environment = {"id": "Pendulum-v1" if continuous else "CartPole-v1"}
    config = {
        "name": name,
        "agent": {"algorithm": algorithm, "policy": policy, "hyperparameters": ALGORITHMS[algorithm]},
        "environment": MASKED if algorithm == "MaskablePPO" else environment,
        "training": {"total_timesteps": 64, "eval_freq": 32, "checkpoint_freq": 32},
        "evaluation": {"episodes": 1},
        "checkpoints": {"keep_last": 10},
    }
    for section, values in more.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
    trainer = Trainer(config, root=root)
    trainer.loop.delivers = False
    trainer.train()
    return Root(root).find(name)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained") / "root"
    trained(root)
    return root


@pytest.fixture
def run(trained_once, own_root):
    shutil.copytree(trained_once, own_root)
    return Root(own_root).find("again")


def test_a_run_is_reproduced_and_certified(run, capsys):
    with pytest.raises(RltrackError, match="no certificate"):
        require_reproduced(run, run.store().find("last"))
    found = reproduce(run, repeat=repeat)
    assert found.reproduced, found.result
    assert found.result.startswith("reproduced: all of 64 env steps in 2 segment(s)")
    numbered = sum("seq" in record for record in read_journal(run.journal_file))
    assert sum(outcome.records for outcome in found.outcomes) == numbered
    for version in run.store().versions():
        require_reproduced(run, version)
    certificate = json.loads((run.path / CERTIFICATE).read_bytes())
    assert certificate["digests"]["versions"].keys() == {version.name for version in run.store().versions()}
    assert run_command(["show", "again"]) == 0
    assert "reproduction: reproduced: all of 64" in capsys.readouterr().out
    _change_weight(run)
    with pytest.raises(RltrackError, match="not the version that was reproduced"):
        require_reproduced(run, run.store().find("v2"))


@pytest.mark.slow
def test_what_was_changed_is_named(run):
    journal = run.journal_file.read_bytes()
    _change_record(run)
    found = reproduce(run, repeat=repeat)
    assert "between the start and v2, record " in found.result
    assert "(metrics at 16 env steps): values/train/loss: " in found.result
    with pytest.raises(RltrackError, match="was not reproduced"):
        require_reproduced(run, run.store().find("last"))
    run.journal_file.write_bytes(journal)
    config = run.read_config()
    changed = copy.deepcopy(config)
    changed["agent"]["hyperparameters"]["n_epochs"] = 3
    run.write_config(changed)
    assert "agent.hyperparameters.n_epochs" in reproduce(run, repeat=repeat).result
    run.write_config(config)
    run.journal_file.write_bytes(journal)
    _change_weight(run)
    found = reproduce(run, repeat=repeat)
    assert "and v2, policy/" in found.result
    assert ": 1 of " in found.result
    assert " in the run, " in found.result


def _change_record(run):
    """Change a value of a metric by one unit in the last place, with its checksum."""
    lines = run.journal_file.read_bytes().splitlines(keepends=True)
    for index, line in enumerate(lines):
        number, record = decode_line(line)
        if "train/loss" in record.get("values", ()):
            values = record["values"]
            changed = {**values, "train/loss": math.nextafter(values["train/loss"], 9)}
            lines[index] = numbered_line(encode_record({**record, "values": changed}), number)
            break
    run.journal_file.write_bytes(b"".join(lines))


def _change_weight(run):
    """Change the last weight of the first version by one unit in the last place, with every checksum."""
    version = run.store().find("v2")
    file = version.path / "policy.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.unlink()
    file.write_bytes(data)
    manifest = unseal((version.path / MANIFEST).read_bytes())
    manifest["files"][file.name]["sha256"] = hashlib.sha256(data).hexdigest()
    (version.path / MANIFEST).write_bytes(seal(manifest))


def test_a_difference_in_a_run_that_is_not_exact_is_explained(own_root):
    run = trained(own_root, environment={"id": "rltrack-tests/Generator-v0"})
    found = reproduce(run, segments="last", repeat=repeat)
    assert "The record need not be wrong: a repetition from v2 is not exact, as the environments" in found.result


class KeepsGenerator(TinyEnv):
    """Can be neither pickled nor replayed."""

    def __init__(self):
        super().__init__()
        self.numbers = (float(number % 7) for number in itertools.count())

    def step(self, action):
        return super().step(np.full(1, next(self.numbers)))


gym.register("rltrack-tests/Generator-v0", entry_point=KeepsGenerator, max_episode_steps=5)


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    """At 128 env steps, training returned to the best version, which is from 64 env steps; later ones were better."""
    return trained(
        tmp_path_factory.mktemp("adaptive") / "root",
        training={"strategy": "adaptive", "eval_freq": 64, "checkpoint_freq": 48, "total_timesteps": 240},
        checkpoints={"keep_last": 1, "keep_every": 96},
    )


@pytest.mark.slow
def test_a_return_to_the_best_version_is_reproduced(adaptive):
    decisions = adaptive.history(report=False).decisions
    assert [item["step"] for item in decisions if "comes back (time 1 of 3)" in item["reason"]] == [128]
    outcome = repeat(adaptive, Stretch("v3", "v5"))
    assert (outcome.to_steps, outcome.difference, outcome.unchecked) == (192, None, None)


@pytest.mark.slow
def test_without_the_best_version_a_segment_is_not_checked_to_its_end(adaptive, own_root):
    shutil.copytree(adaptive.root, own_root)
    run = Root(own_root).find("again")
    run.store().delete([run.store().find("v2")])
    found = reproduce(
        run, repeat=lambda run, stretch: repeat(run, stretch if stretch.begin == "v3" else Stretch(None, "v3"))
    )
    assert found.reproduced
    assert found.result.endswith("; 128 to 192 env steps not checked: the best version, from 64 env steps, is gone")
    assert not json.loads((run.path / CERTIFICATE).read_bytes())["covers"]


def test_a_resume_returns_to_the_version_that_was_the_best_then(adaptive, own_root):
    """A later one, which the killed process left, is better."""
    store = adaptive.store()
    copy = copy_run(adaptive, store.find("v3"), Root(own_root))
    later = store.find("best")
    shutil.copytree(later.path, copy.path / "checkpoints" / later.path.name)
    trainer = Trainer(quiet_config(adaptive), root=own_root)
    trainer.loop.delivers = False
    trainer.train()
    ours, theirs = (each.read(each.find("last"), ["policy"]) for each in (copy.store(), store))
    assert first_difference(ours, theirs)[1] is None


def test_segments_are_chosen():
    class Named:
        def __init__(self, name):
            self.name = name

    versions = [Named(f"v{number}") for number in range(1, 7)]
    assert [stretch.end for stretch in stretches(versions, "all")] == ["v1", "v2", "v3", "v4", "v5", "v6"]
    assert [(stretch.begin, stretch.end) for stretch in stretches(versions, "last")] == [("v5", "v6")]
    assert [stretch.end for stretch in stretches(versions, "3")] == ["v2", "v4", "v6"]
    assert len(stretches(versions, "99")) == 6
    for wrong in ("0", "-1", "some"):
        with pytest.raises(ConfigurationError, match="Allowed: all, last"):
            stretches(versions, wrong)


@pytest.mark.nightly
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_algorithm_is_reproduced_in_processes(algorithm, own_root):
    run = trained(own_root, algorithm)
    assert run_command(["reproduce", "again", "--jobs", "2"]) == 0
    assert json.loads((run.path / CERTIFICATE).read_bytes())["covers"]


@pytest.mark.nightly
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_every_kind_of_training_is_reproduced(setting, own_root):
    assert reproduce(trained(own_root, **SETTINGS[setting]), repeat=repeat).reproduced


@pytest.mark.nightly
def test_a_run_that_began_with_anothers_policy_is_reproduced(own_root):
    trained(own_root, name="origin")
    assert reproduce(trained(own_root, start_from="origin@v2"), repeat=repeat).reproduced


@pytest.mark.nightly
def test_a_run_of_a_script_is_reproduced(own_root):
    model = PPO("MlpPolicy", "CartPole-v1", seed=3, **ALGORITHMS["PPO"])
    marks = {"total_timesteps": 64, "eval_freq": 32, "checkpoint_freq": 32, "eval_episodes": 1}
    TrainingLoop(model, name="again", root=own_root, keep_last=10, video=False, sinks=[], **marks).run()
    found = reproduce(Root(own_root).find("again"), repeat=repeat)
    assert found.reproduced, found.result
