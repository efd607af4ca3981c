"""A run's folder that goes away, a disk that is full, a root that is read only, one damaged run among others."""

from __future__ import annotations

import os
import shutil

import pytest
import yaml

from rltrack import TrainingLoop
from rltrack.checkpoints.kept import what_is_gone
from rltrack.cli import run_command
from rltrack.errors import JournalFailed, RunDamaged
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.tracking import shipper
from rltrack.tracking.destination import read_destination
from rltrack.tracking.sinks.tensorboard import _same_folder
from tests.property.test_damaged_runs import give_to_anybody, without_root_rights
from tests.support.agents import TINY, ScriptedAgent
from tests.support.runs import made_run


def train(name="run", before=lambda iteration: None, total=200, **settings):
    agent = ScriptedAgent()
    agent.before_iteration = before
    loop = TrainingLoop(agent, TINY, total_timesteps=total, checkpoint_freq=50, name=name, **settings)
    loop.run()
    return Root().find(name)


def test_a_folder_that_is_removed_ends_the_training_as_failed(own_root):
    def remove(iteration):
        if iteration == 8:
            (own_root / "runs" / "run").rename(own_root / "trash")  # a version may just be written there
            shutil.rmtree(own_root / "trash", ignore_errors=True)

    with pytest.raises(JournalFailed, match=r"is gone .* was the run's folder removed or moved"):
        train(before=remove)
    assert list((own_root / "runs").rglob("*")) == [], "nothing is made there again"


@pytest.mark.slow
def test_a_folder_that_is_removed_while_it_is_delivered_is_failed_in_mlflow(own_root):
    from mlflow.tracking import MlflowClient

    run = train()
    shipper.prepare_process()
    said = []
    ours = shipper.Shipper(run, patience=0.0, notify=said.append)
    ours._deliver()
    shutil.rmtree(run.path)
    assert ours.ship() is False
    assert "was removed" in " ".join(said)
    [found] = MlflowClient(f"sqlite:///{own_root / 'mlflow.db'}").search_runs(["1"])
    assert found.info.status == "FAILED"
    assert "was removed" in found.data.tags["rltrack.reason"]
    assert not run.path.exists()


def test_after_a_full_disk_show_has_the_reason(own_root, monkeypatch, capsys):
    write = os.write

    def full(descriptor, data):
        if b'"step":120' in bytes(data):
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JournalFailed):
        train()
    monkeypatch.undo()
    monkeypatch.setenv("RLTRACK_ROOT", str(own_root))
    assert run_command(["show", "run"]) == 0
    assert "failed: The journal cannot be written: [Errno 28] No space left on device" in capsys.readouterr().out
    run = train(resume=True)
    assert run.status().state == "completed", "the reason belongs to the attempt before"


def test_a_root_that_cannot_be_written_is_an_error_in_words(own_root, capsys):
    import rltrack.registry.models
    import rltrack.tracking.plots  # noqa: F401  # loaded while everything may be read

    made_run(own_root, "one")
    give_to_anybody(own_root)
    for path in (own_root / "runs" / "one", own_root / "runs", own_root):
        path.chmod(0o555)
    try:
        with without_root_rights():
            for words in (["sync", "one"], ["sync", "--all"], ["plot", "one"], ["export", "one"]):
                assert run_command(words) == 1, words
                said = capsys.readouterr().err
                assert "Permission denied" in said
                assert "Traceback" not in said
            assert run_command(["show", "one"]) == 0
            assert run_command(["runs"]) == 0
    finally:
        for path in (own_root / "runs" / "one", own_root / "runs", own_root):
            path.chmod(0o755)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"a: [", b"- 1\n", None])
def test_a_configuration_that_is_damaged_comes_from_a_version(own_root, content, capsys):
    run = train()
    before = run.read_config()
    assert yaml.safe_load(run.config_file.read_text()) == before
    run.config_file.unlink()
    if content is not None:
        run.config_file.write_bytes(content)
    assert run.read_config() == before
    assert run_command(["show", "run"]) == 1
    said = capsys.readouterr().err
    assert "config.yaml is" in said
    assert "the copy in its version" in said
    shutil.rmtree(run.path / "checkpoints")
    assert run.read_config()["agent"] == before["agent"], "the journal has what decides the result"
    run.journal_file.write_bytes(b"")
    with pytest.raises(RunDamaged, match="Put it back from a backup"):
        run.read_config()


def test_a_setting_that_changed_in_the_file_by_itself_is_not_believed(own_root):
    run = train()
    text = run.config_file.read_text()
    assert "total_timesteps: 200" in text
    for changed in (text.replace("total_timesteps: 200", "total_timesteps: 300"), text.partition("\n")[2]):
        run.config_file.write_text(changed)
        assert run.read_config()["training"]["total_timesteps"] == 200


def test_a_destination_that_is_damaged_sends_nothing_elsewhere(own_root, capsys):
    run = made_run(own_root, "one")
    run.destination_file.write_text('{"tracking_uri": "sqlite')
    with pytest.raises(RunDamaged, match="nothing is delivered"):
        read_destination(run)
    assert run_command(["sync", "one"]) == 1
    said = capsys.readouterr().err
    assert "destination.json" in said
    assert "delete it" in said
    assert not (own_root / "mlflow.db").exists()


@pytest.mark.slow
def test_sync_all_goes_on_past_a_damaged_run(own_root, capsys):
    made_run(own_root, "a").destination_file.write_text("{")
    made_run(own_root, "b").journal_file.unlink()
    made_run(own_root, "c")
    assert run_command(["sync", "--all"]) == 1
    said = capsys.readouterr()
    assert "c: delivered" in said.out
    assert "a is not delivered" in said.err


@pytest.mark.slow
def test_a_run_without_its_journal_is_listed_with_what_to_do(own_root, capsys):
    run = made_run(own_root, "one")
    made_run(own_root, "two")
    run.journal_file.unlink()
    for words in (["runs"], ["show", "one"], ["journal", "one"], ["plot", "one"], ["export", "one"]):
        assert run_command(words) == 1
        said = capsys.readouterr()
        assert "journal.jsonl is missing" in said.err
        assert "resume the run" in said.err
        assert "no runs yet" not in said.err
    assert run_command(["checkpoints", "one"]) == 0


@pytest.mark.slow
def test_a_version_that_was_removed_is_named_wherever_versions_are_used(own_root, capsys):
    run = train()
    assert run_command(["show", "run"]) == 0, "what retention deleted is not missed"
    whole = run.store().folders()
    shutil.rmtree(whole[-1])
    name = f"v{int(whole[-1].name[1:])}"
    for words in (["show", "run"], ["runs"], ["checkpoints", "run"], ["checkpoints", "run", "--pin", name]):
        capsys.readouterr()
        assert run_command(words) == 1, words
        said = capsys.readouterr().err
        assert f"The version {name} is missing" in said, words
        assert whole[0].name in said
    run_command(["doctor"])
    assert f"The version {name} is missing" in " ".join(capsys.readouterr().out.split())
    assert run_command(["checkpoints", "run", "--prune"]) == 1
    capsys.readouterr()
    assert run_command(["show", "run"]) == 0, "its loss was accepted"


def test_a_resume_says_that_a_version_was_removed(own_root):
    def fail(iteration):
        if iteration == 13:
            raise RuntimeError("the simulator crashed")

    with pytest.raises(RuntimeError, match="simulator"):
        train(before=fail)
    run = Root().find("run")
    removed = run.store().folders()[-1]
    shutil.rmtree(removed)
    train(resume=True)
    warnings = [record["message"] for record in read_journal(run.journal_file) if record["kind"] == "warning"]
    assert any(f"{removed} was removed" in text for text in warnings)
    assert what_is_gone(run.path / "checkpoints") == []


def test_versions_of_an_older_release_or_behind_a_damaged_list_are_not_missed(own_root):
    run = train()
    shutil.rmtree(run.store().folders()[0])
    assert what_is_gone(run.path / "checkpoints")
    (run.path / "checkpoints" / "kept.json").write_text('{"versions": [1, 2, "x"], "sha256": ""}')
    assert what_is_gone(run.path / "checkpoints") == []
    (run.path / "checkpoints" / "kept.json").unlink()
    assert what_is_gone(run.path / "checkpoints") == []


def test_tensorboards_folder_is_the_same_under_another_name(own_root, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (tmp_path / "link" / "events", tmp_path / "a" / ".." / "events"):
        (tmp_path / "a").mkdir(exist_ok=True)
        assert _same_folder(str(other), tmp_path / "events")
    assert not _same_folder(str(tmp_path / "a"), tmp_path / "events")
    assert not _same_folder(None, tmp_path / "events")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["changed", "removed", "cut"])
def test_tensorboards_files_that_are_damaged_are_named_and_written_again(own_root, way, capsys):
    run = train()
    shipper.prepare_process()
    assert shipper.ship_run(run, patience=0.0, notify=lambda _: None) == 0
    (path,) = run.tensorboard.glob("events.out.*")
    data = path.read_bytes()
    assert run_command(["show", "run"]) == 0
    assert path.name not in capsys.readouterr().err
    if way == "removed":
        path.unlink()
    else:
        path.write_bytes(data[:-5] if way == "cut" else data[:200] + bytes([data[200] ^ 1]) + data[201:])
    assert run_command(["show", "run"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert path.name in said
    assert "rltrack sync run" in said
    assert run_command(["sync", "run"]) == 0
    assert "damaged files are written again" in " ".join(capsys.readouterr().out.split())
    (again,) = run.tensorboard.glob("events.out.*")
    assert len(again.read_bytes()) >= len(data) - 5
    assert run_command(["show", "run"]) == 0
    assert again.name not in capsys.readouterr().err
