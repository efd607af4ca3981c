"""What a person or another machine named becomes a path in one way, and never one that leads elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, RunNotFound
from rltrack.files import folder_name, inside
from rltrack.flows import retrain, train
from rltrack.runs import Root, run_stem
from rltrack.tracking.sinks.embedded import artifact_folder, ensure_database, moved_from
from rltrack.tracking.sinks.relocation import relocate

BASE = {"agent": {"algorithm": "PPO"}, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 100}}
NAMES = [
    "../../escape",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\0b",
    "x" * 300,
    "-x",
    ".hidden",
    "a\nb",
    "ü",
    "a..b",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_runs_name_is_checked_at_every_door(tmp_path, name):
    from rltrack.checkpoints.remote import RemoteRun
    from rltrack.studies.search import Search
    from rltrack.studies.seeds import study_members

    root = Root(tmp_path / "root")
    named = TrainingConfig.from_mapping(BASE).model_copy(update={"name": name})  # past the configuration's own check
    doors = [
        lambda: root.find(name), lambda: root.exists(name), lambda: root.directory(name), lambda: root.create(name, ""),
        lambda: root.study_folder(name), lambda: Search(name, root), lambda: RemoteRun(f"file://{tmp_path}/s", name, b"key"),
        lambda: TrainingConfig.from_mapping({**BASE, "name": name}),
        *([lambda: train.run_name(named, None, "12345678"), lambda: train.run_name(named, name, "12345678"),
           lambda: retrain.retrained_name(named, name, None), lambda: study_members(named, [0], root)] if name else []),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(ConfigurationError) as caught:
            door()
        assert len(str(caught.value)) < 600, "a long name is not repeated whole"
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["root", "runs"], ["root"])


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "", ".", "..", "x" * 256, "ä" * 128, "a\0b", "a\x1b[31mb", "a\nb"]
)
def test_a_files_name_names_one_file_of_its_folder(tmp_path, name):
    with pytest.raises(ConfigurationError):
        inside(tmp_path, name)
    assert inside(tmp_path, "v000001.json") == tmp_path / "v000001.json"


@given(st.text(max_size=500))
def test_any_text_gives_a_folders_name(text):
    name = folder_name(text)
    assert inside(Path("/srv"), name) == Path("/srv") / name
    assert len(os.fsencode(name)) <= 150
    assert name not in (".", "..")
    assert name == text or "~" in name, "what is changed cannot be somebody's plain name"
    assert name == folder_name(text)


@given(st.text(max_size=20), st.text(max_size=20))
def test_other_texts_give_other_folders(one, other):
    assert (folder_name(one) == folder_name(other)) == (one == other)


@pytest.mark.parametrize("plain", ["rltrack", "cartpole", "My experiment (2)", "Übung 3", "a.b-c_d=1,e+f@g", "x" * 150])
def test_plain_names_keep_the_folder_that_they_had(plain):
    assert artifact_folder(Path("/root"), plain) == Path("/root/artifacts") / plain


@pytest.mark.parametrize(
    "name", ["../../escape", "/etc", "a/b", "x" * 500, "ä" * 200, "..", "a\0b", "x~0123456789abcdef", "x "]
)
def test_artifacts_of_any_experiment_lie_under_the_root(tmp_path, name):
    folder = artifact_folder(tmp_path, name)
    assert folder.parent == tmp_path / "artifacts"
    assert folder.resolve().parent == folder.parent
    folder.mkdir(parents=True)


def test_a_root_with_such_experiments_can_be_moved(tmp_path):
    from mlflow.tracking import MlflowClient

    before, after = tmp_path / "before", tmp_path / "after"
    client = MlflowClient(ensure_database(before))
    for name in ("plain", "with/slash", "x" * 300):
        client.create_experiment(name, artifact_location=artifact_folder(before, name).as_uri())
    before.rename(after)
    assert moved_from(after) == before
    assert relocate(Root(after)) is not None
    assert moved_from(after) is None
    client = MlflowClient(ensure_database(after))
    for name in ("plain", "with/slash", "x" * 300):
        assert client.get_experiment_by_name(name).artifact_location == artifact_folder(after, name).as_uri()


@pytest.mark.slow
def test_a_run_in_an_experiment_with_a_hostile_name_is_delivered_under_the_root(tmp_path, own_root):
    from rltrack import TrainingLoop
    from rltrack.tracking.shipper import EXIT_DELIVERED, ship_run
    from tests.support.agents import ScriptedAgent, TinyEnv

    for number, experiment in enumerate(["../../escape", "x" * 500]):
        name = f"hostile-{number}"
        TrainingLoop(ScriptedAgent(), TinyEnv(), total_timesteps=100, name=name, experiment=experiment).run()
        assert ship_run(Root().find(name), patience=0.0) == EXIT_DELIVERED
    assert {path.name for path in tmp_path.iterdir()} == {own_root.name}
    assert len(list((own_root / "artifacts").iterdir())) == 2


def make_run(root: Root, name: str) -> Path:
    run = root.create(name, "")
    run.write_config({"name": name})
    run.journal_file.touch()
    return run.path


def test_a_link_out_of_the_root_is_no_run(tmp_path):
    root, elsewhere = Root(tmp_path / "root"), Root(tmp_path / "elsewhere")
    victim = make_run(elsewhere, "victim")
    make_run(root, "own")
    (root.runs_folder / "linked").symlink_to(victim)
    (root.runs_folder / "dangling").symlink_to(tmp_path / "nothing")
    (root.runs_folder / "circle").symlink_to(root.runs_folder / "circle")
    (root.runs_folder / "same").symlink_to(root.runs_folder / "own")
    assert root.names() == ["own", "same"]
    assert [run.name for run in root.runs()] == ["own", "same"]
    for name in ("linked", "dangling", "circle"):
        for door in (root.find, root.exists, root.directory, lambda name: root.create(name, "")):
            with pytest.raises(ConfigurationError, match="symbolic link that leads out of"):
                door(name)
    assert not (tmp_path / "nothing").exists()
    assert [path.name for path in victim.iterdir()] == ["config.yaml", "journal.jsonl"] or len(
        list(victim.iterdir())
    ) == 2


def test_tensorboards_links_do_not_follow_one_either(tmp_path):
    from rltrack.runs import RunDirectory

    root, elsewhere = Root(tmp_path / "root"), Root(tmp_path / "elsewhere")
    victim = make_run(elsewhere, "victim")
    root.check_writable()
    (root.runs_folder / "linked").symlink_to(victim)
    RunDirectory(root.runs_folder / "linked").link_tensorboard()
    assert not root.tensorboard_folder.exists()
    RunDirectory(make_run(root, "own")).link_tensorboard()
    assert [path.name for path in root.tensorboard_folder.iterdir()] == ["own"]


def test_a_root_that_is_reached_through_links_works(tmp_path):
    make_run(Root(tmp_path / "real"), "one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = Root(tmp_path / "link")
    assert linked.find("one").journal_file.exists()
    make_run(linked, "two")
    assert Root(tmp_path / "real").names() == linked.names() == ["one", "two"]
    # runs/ itself on another disk, as its owner wants it
    (tmp_path / "disk").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "runs").symlink_to(tmp_path / "disk")
    make_run(Root(tmp_path / "other"), "three")
    assert Root(tmp_path / "other").names() == ["three"]


def test_a_study_folder_that_is_a_link_is_not_followed(tmp_path):
    root = Root(tmp_path / "root")
    (root.path / "studies").mkdir(parents=True)
    (root.path / "studies" / "sweep").symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        root.study_folder("sweep")
    with pytest.raises(RunNotFound):
        root.find("unknown")


def test_names_that_are_made_are_short_enough(tmp_path):
    long = "PPO-" + "a" * 200 + "-s0"
    assert len(run_stem(long)) <= 90
    assert run_stem(long) != run_stem(f"{long}1"), "what is cut off still tells them apart"
    assert run_stem("PPO-CartPole-v1-s0") == "ppo-cartpole-v1-s0"
    assert run_stem("a..b/../c") == "a.b-.-c"
    Root(tmp_path).create(None, long)
    Root(tmp_path).create(None, "../../x")
    config = TrainingConfig.from_mapping({**BASE, "environment": {"id": f"package:{'E' * 200}-v0"}})
    Root(tmp_path).directory(train.run_name(config, None, "12345678-90"))
    Root(tmp_path).directory(retrain.retrained_name(config, None, None))
    Root(tmp_path).directory(retrain.retrained_name(None, None, None, "../" + "m" * 250))
    with pytest.raises(ConfigurationError, match="retraining adds the time to it; up to 84"):
        retrain.retrained_name(config.model_copy(update={"name": "n" * 90}), None, None)


def test_a_sweep_whose_runs_would_have_too_long_names_is_refused_before_it_begins(tmp_path):
    pytest.importorskip("optuna")
    from rltrack.studies.search import Search
    from rltrack.studies.seeds import study_members
    from rltrack.studies.space import SweepSection

    section = SweepSection.model_validate(
        {"parameters": {"gamma": {"choice": [0.9]}}, "trials": 1, "sampler": "random"}
    )
    with pytest.raises(ConfigurationError, match="1 to 100 letters"):
        Search("s" * 98, Root(tmp_path)).open(BASE, section)
    assert not (tmp_path / "studies").exists()
    with pytest.raises(ConfigurationError, match="1 to 100 letters"):
        study_members(TrainingConfig.from_mapping({**BASE, "name": "s" * 99}), [0, 1], Root(tmp_path / "r"))
    assert not (tmp_path / "r").exists()
