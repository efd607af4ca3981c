"""The training process's view of its shipper: started, looked at, started again, never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from rltrack.files import take_lock
from rltrack.journal import Journal
from rltrack.runs import Root
from rltrack.tracking import delivery as deliveries
from rltrack.tracking.bookmark import Bookmark, is_delivered
from rltrack.tracking.delivery import Delivery
from rltrack.tracking.shipper import left_behind
from rltrack.tracking.sinks.embedded import ensure_database
from rltrack.training.train_loop import TrainingLoop
from tests.support.agents import TINY, ScriptedAgent


@pytest.fixture
def run():
    run = Root().create("watched", "")
    journal = Journal(run.journal_file)
    journal.note("configuration", run_id="watched", identity={}, agent={})
    journal.close()
    return run


@pytest.fixture
def spawned(monkeypatch):
    """Processes that end at once, in the place of shippers."""
    started = []

    def spawn(arguments, log):
        started.append(arguments)
        return subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)

    monkeypatch.setattr(deliveries, "_start_shipper", spawn)
    monkeypatch.setattr(deliveries, "_LOOK_SECONDS", 0.0)
    return started


def test_a_dead_shipper_is_replaced_and_one_that_keeps_dying_ever_more_slowly(run, spawned, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(deliveries.time, "monotonic", lambda: clock[0])
    delivery = Delivery(run)
    delivery.look()
    started_at = [0.0]
    for second in range(1, 200):
        clock[0] = float(second)
        if delivery._process is not None:
            delivery._process.wait()
        before = len(spawned)
        delivery.look()
        if len(spawned) > before:
            started_at.append(clock[0])
    assert started_at == [0.0, 5.0, 15.0, 35.0, 75.0, 155.0]


def test_another_processs_shipper_is_left_alone(run, spawned):

    lock = take_lock(run.shipper_lock)
    delivery = Delivery(run)
    delivery.look()
    assert spawned == []
    os.close(lock)
    delivery.look()
    assert spawned == [[str(run.path)]]


def test_a_run_without_sinks_needs_no_delivery(own_root):
    loop = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=10, name="quiet", root=own_root, sinks=[])
    loop.run()
    run = Root(own_root).find("quiet")
    assert is_delivered(run)
    assert loop.wait_for_tracking(0.0)
    assert not run.shipper_log.exists()
    assert left_behind(Root(own_root)) == []


def test_training_goes_on_where_no_process_can_be_started(run, monkeypatch, caplog):
    def refuse(arguments, log):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(deliveries, "_start_shipper", refuse)
    delivery = Delivery(run)
    delivery.look()
    delivery.finish()
    assert delivery.wait(5) is False
    assert "no process can be started" in caplog.text


def test_waiting_ends_when_everything_is_there_or_no_process_tries(run, spawned):
    delivery = Delivery(run)
    delivery.look()
    assert delivery.wait(30) is False, "the process died without delivering"
    bookmark = Bookmark("watched")
    bookmark.mlflow.finished_at = bookmark.tensorboard.finished_at = run.journal_file.stat().st_size
    bookmark.save(run.bookmark_file)
    assert delivery.wait(30) is True
    count = len(spawned)
    delivery.finish()
    assert len(spawned) == count, "there is nothing left to deliver"


@pytest.mark.parametrize("kills", [2, 9])
def test_a_shipper_that_is_killed_at_the_end_is_replaced(run, monkeypatch, kills):
    started = []

    def spawn(arguments, log):
        started.append(arguments)
        delivers = len(started) > kills
        if delivers:
            bookmark = Bookmark("watched")
            bookmark.mlflow.finished_at = bookmark.tensorboard.finished_at = run.journal_file.stat().st_size
            bookmark.save(run.bookmark_file)
        return subprocess.Popen(["sh", "-c", "exit 0" if delivers else "kill -9 $$"])

    monkeypatch.setattr(deliveries, "_start_shipper", spawn)
    delivery = Delivery(run)
    delivery.look()
    delivery._process.wait()
    delivery.finish()
    assert len(started) == 2, "one that died before the end is replaced at once"
    assert delivery.wait(30) is (kills == 2)
    assert len(started) == (3 if kills == 2 else 5)


@pytest.mark.slow
def test_a_folder_that_goes_takes_nothing_with_it(run, tmp_path, own_root):
    """A flow run's working folder is deleted when the flow run is killed; its shipper lives on."""
    folder = tmp_path / "of-a-flow-run"
    folder.mkdir()
    run.write_config({"tracking": {"video": False}})
    ensure_database(own_root)
    journal = Journal(run.journal_file)
    journal.write("metrics", 1, values={"rollout/ep_rew_mean": 1.0})
    journal.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "rltrack.tracking.shipper", str(run.path)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while not run.is_shipped() and process.poll() is None:
        time.sleep(0.01)  # Python itself does not start in a folder that is gone
    folder.rmdir()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert is_delivered(run)


def test_tensorboards_folder_is_where_the_run_was_started(tmp_path, monkeypatch):
    from rltrack import TrainingLoop
    from tests.support.agents import TINY, ScriptedAgent

    monkeypatch.chdir(tmp_path)
    TrainingLoop(ScriptedAgent(), TINY, total_timesteps=50, name="elsewhere", tensorboard_log_dir="events").run()
    monkeypatch.chdir("/")
    assert Root().find("elsewhere").tensorboard == tmp_path / "events" / "elsewhere"


def test_everything_is_delivered_again_after_the_process_that_still_delivers_has_ended(run, monkeypatch, capsys):
    """It saves how far it is until its end."""
    from rltrack.console import deliveries as console
    from rltrack.tracking import shipper

    def save():
        done = Bookmark("watched")
        for sink in done.sinks.values():
            sink.journal = sink.finished_at = run.journal_file.stat().st_size
        done.save(run.bookmark_file)

    class Shipper:
        def __init__(self, run, **options):
            self.delivered = is_delivered(run)

        def ship(self):
            return not self.delivered

    run.write_config({})
    save()
    monkeypatch.setattr(shipper, "prepare_process", lambda: None)
    monkeypatch.setattr(shipper, "Shipper", Shipper)
    monkeypatch.setattr(console, "_wait_for_shipper", lambda run: save())
    assert console.sync_runs(Root(), run, again=True)
    assert "watched: delivered" in capsys.readouterr().out
    assert not is_delivered(run)
    save()
    lock = take_lock(run.shipper_lock)
    monkeypatch.setattr(shipper, "_LOCK_SECONDS", 0.0)
    assert not console.sync_runs(Root(), run, again=True)
    os.close(lock)
    assert "watched: not delivered" in capsys.readouterr().out
    assert is_delivered(run)
