"""Only a resume reads pickles: every other door goes through a run whose environment part is a malicious one."""

from __future__ import annotations

import hashlib
import pathlib
import pickle
import sys

import orjson
import pytest

pytest.importorskip("stable_baselines3")

from rltrack.checkpoints import encoding
from rltrack.checkpoints.version import MANIFEST, seal
from rltrack.cli import run_command
from rltrack.registry.gate import Gate
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, load_agent, starting_state
from tests.support.models import tiny_config


class _Found:
    """Notes each name that any pickle in this process looks up, while it listens. An audit hook cannot be taken away."""

    def __init__(self):
        self.names: list[str] | None = None

    def __call__(self, event, arguments):
        if event == "pickle.find_class" and self.names is not None:
            self.names.append(".".join(map(str, arguments)))


FOUND = _Found()
sys.addaudithook(FOUND)


@pytest.fixture
def listening():
    FOUND.names = []
    yield FOUND.names
    FOUND.names = None


class Malicious:
    """Makes a file where it is unpickled, in whatever process that is."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


class StopAfterTheFirst:
    """Stops a training at its first evaluation."""

    def __init__(self, loop):
        self.loop = loop

    def on_evaluation_end(self, progress, evaluation):
        self.loop.stop("enough")


def poison(tree, payload):
    """Put the payload wherever there are bytes."""
    if isinstance(tree, bytes):
        return payload
    if isinstance(tree, dict):
        return {key: poison(item, payload) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(poison(item, payload) for item in tree)
    return tree


def poison_version(store, version, payload):
    """Let its environment part hold the payload, and its digests fit."""
    encoded = encoding.encode(poison(store.read(version, ["environment"])["environment"], payload))
    assert payload in encoded.tensors, "there is something to unpickle"
    manifest = orjson.loads((version.path / MANIFEST).read_bytes())
    del manifest["sha256"]
    for name, data in (("environment.json", encoded.skeleton), ("environment.safetensors", encoded.tensors)):
        (version.path / name).write_bytes(data)
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (version.path / MANIFEST).write_bytes(seal(manifest))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was stopped half way, and one that is finished; both with poisoned environments."""
    root = tmp_path_factory.mktemp("poisoned") / "mlruns"
    marker = root.parent / "executed"
    payload = pickle.dumps(Malicious(marker))
    for name, stop in (("stopped", True), ("finished", False)):
        config = tiny_config(name)
        config["training"] = {"total_timesteps": 64, "eval_freq": 16, "checkpoint_freq": 16}
        trainer = Trainer(config, root=root)
        trainer.loop.delivers = False
        if stop:
            trainer.loop.add_hook(StopAfterTheFirst(trainer.loop))
        trainer.train()
        store = Root(root).find(name).store()
        for version in store.versions():
            if version.is_resumable:
                poison_version(store, version, payload)
    return root, marker


DOORS = [
    ["show", "finished"],
    ["show", "finished", "--json"],
    ["runs"],
    ["journal", "finished"],
    ["checkpoints", "finished", "--verify"],
    ["checkpoints", "finished", "--pin", "last", "--prune"],
    ["eval", "finished@last", "--episodes", "3"],
    ["eval", "finished@best", "--episodes", "3"],
    ["export", "finished"],
    ["plot", "finished"],
    ["compare", "finished", "stopped"],
    ["prune", "--match", "*", "--unfinished"],
]


@pytest.fixture
def poisoned(trained, monkeypatch, tmp_path, listening):
    root, marker = trained
    monkeypatch.chdir(tmp_path)  # where a comparison is written
    monkeypatch.setenv("RLTRACK_ROOT", str(root))
    marker.unlink(missing_ok=True)
    return root, marker


@pytest.mark.parametrize("words", DOORS, ids=" ".join)
@pytest.mark.slow
def test_no_door_but_resume_unpickles(poisoned, listening, words):
    _, marker = poisoned
    code = run_command(words)
    assert (listening, marker.exists()) == ([], False)
    assert code == 0


@pytest.mark.slow
def test_a_training_that_begins_with_its_policy_unpickles_its_own_environments_only(poisoned, listening):
    _, marker = poisoned
    assert run_command(["train", "--from", "finished@last", "--timesteps", "32", "--name", "next"]) == 0
    assert not marker.exists()
    assert [name for name in listening if name.startswith("pathlib")] == []


def test_the_library_does_not_unpickle_either(poisoned, listening):
    root, marker = poisoned
    run = Root(root).find("finished")
    load_agent("finished", "last", root)
    starting_state(Root(root), "finished@last")
    version, state, problems = run.store().newest_good()
    assert (version.name, problems) == (run.store().find("last").name, [])
    assert "environment" in state
    assert (listening, marker.exists()) == ([], False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_promoting_does_not_unpickle(poisoned, listening):
    root, marker = poisoned
    promote("finished", "poisoned", version="last", gate=Gate(episodes=30), root=root)
    assert (listening, marker.exists()) == ([], False)


def test_resume_does_which_shows_that_this_would_be_noticed(poisoned, listening):
    _, marker = poisoned
    assert run_command(["resume", "stopped"]) == 1  # what the payload leaves is no environment
    assert marker.exists()
    assert any(name.startswith("pathlib.") and name.endswith("Path.touch") for name in listening)
