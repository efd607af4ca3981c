"""A training is stopped, paused, continued and saved from outside its process, through its run's folder."""

from __future__ import annotations

import threading

import psutil
import pytest

from rltrack.cli import run_command
from rltrack.console.steering import follow, steer
from rltrack.errors import RltrackError, RunBusy
from rltrack.runs import Root, requests
from rltrack.training import steering
from rltrack.training.train_loop import TrainingLoop
from tests.support.agents import RecordingHook, ScriptedAgent, TinyEnv


@pytest.fixture
def live(own_root, monkeypatch):
    """A training in another thread, which looks for requests at every boundary."""
    monkeypatch.setattr(steering, "EVERY_SECONDS", 0.0)
    hook = RecordingHook()
    loop = TrainingLoop(ScriptedAgent(), TinyEnv(), total_timesteps=10**9, name="live", hooks=[hook])
    begun = threading.Event()
    loop.add_hook(type("Begun", (), {"on_iteration_end": lambda self, progress, stats: begun.set()})())
    thread = threading.Thread(target=loop.run)
    thread.start()
    begun.wait()
    yield Root(own_root).find("live"), loop, hook
    loop.stop()
    thread.join()


def test_a_live_training_is_steered(live, capsys):
    run, loop, hook = live
    committed = steer(run, "checkpoint", 30)
    version = run.store().find("v1")
    assert committed == f"v1 at {version.env_steps:,} env steps"
    assert steer(run, "pause", 30) == f"paused at {loop.progress.env_steps:,} env steps"
    stands = loop.progress.env_steps
    assert "already paused" in steer(run, "pause", 30)
    assert steer(run, "checkpoint", 30) == f"v2 at {stands:,} env steps", "a paused training stands at a boundary"
    assert steer(run, "checkpoint", 30) == f"there is a version of {stands:,} env steps", "what was wanted is there"
    assert steer(run, "continue", 30) == f"continues at {stands:,} env steps"
    with pytest.raises(RltrackError, match="it is not paused"):
        steer(run, "continue", 30)
    assert steer(run, "stop", 30).startswith("stopped at ")
    assert run.status().reason.startswith("rltrack stop by ")
    assert [name for name in hook.names() if name in ("on_pause", "on_resume")] == ["on_pause", "on_resume"]
    with pytest.raises(RltrackError, match="No process on this machine trains run live: it is stopped"):
        steer(run, "pause", 30)
    assert run_command(["continue", "live"]) == 1
    follow(run)
    said = capsys.readouterr().out
    assert "v2 is committed" in said
    assert "rltrack pause by" in said
    assert said.splitlines()[-1].startswith("stopped at ")


def test_a_stop_is_heard_while_the_training_is_paused(live):
    run, _, _ = live
    steer(run, "pause", 30)
    assert steer(run, "stop", 30).startswith("stopped at ")


def test_a_request_waits_for_a_boundary_and_no_other_takes_its_place(live):
    run, loop, _ = live
    inside, at_boundary = threading.Event(), threading.Event()

    class Long:
        def on_iteration_end(self, progress, stats):
            inside.set()
            at_boundary.wait()

    loop.add_hook(Long())
    inside.wait()
    with pytest.raises(RltrackError, match="did not come to a boundary"):
        steer(run, "pause", 0.3)
    with pytest.raises(RunBusy, match="Another request"):
        steer(run, "stop", 0.3)
    at_boundary.set()


def test_a_request_to_an_earlier_process_is_not_for_this_one(own_root):
    loop = TrainingLoop(ScriptedAgent(), TinyEnv(), total_timesteps=20, name="next", resume=True)
    run = Root(own_root).directory("next")
    run.path.mkdir(parents=True)
    requests.ask(run, "stop")
    assert loop.run().env_steps == 20
    assert requests.peek(run) is None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b'{"verb": "rm", "id": "a", "by": "b"}', b'{"verb": "stop", "id": 1, "by": "a"}']
)
def test_what_is_no_request_is_removed(text, own_root):
    run = Root(own_root).create("odd", "")
    (run.path / "request.json").write_bytes(text)
    assert requests.peek(run) is None
    assert not (run.path / "request.json").exists()


def test_a_folder_in_the_place_of_a_request_costs_no_descriptors(own_root):
    """A training looks once a second: each look that keeps one open would end it after an hour."""
    run = Root(own_root).create("odd", "")
    (run.path / "request.json").mkdir()
    before = psutil.Process().num_fds()
    for _ in range(20):
        assert requests.peek(run) is None
    assert psutil.Process().num_fds() == before
