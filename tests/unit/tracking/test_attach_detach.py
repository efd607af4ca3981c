"""What is attached to a model is taken away again, however learn() ends; and the end of a program is not the end of a training."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import pickle
import pty
import signal
import subprocess
import sys
import threading

import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.logger import Logger, configure

import rltrack
from rltrack.errors import NameTaken, RunBusy
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.tracking.recording import Recording
from rltrack.training.control import Control

SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 3}
AGENT = {"algorithm": "x"}


def ppo():
    return PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, **SMALL)


def dqn():
    return DQN("MlpPolicy", "CartPole-v1", learning_starts=20, buffer_size=200, **SMALL)


def status(name):
    found = Root().find(name).status()
    return found.state, found.reason


def steps(name):
    return [record["step"] for record in read_journal(Root().find(name).journal_file) if record["kind"] == "metrics"]


class Raises(BaseCallback):
    """Raises at a number of steps."""

    def __init__(self, error, at=40):
        super().__init__()
        self.error, self.at = error, at

    def _on_step(self):
        if self.num_timesteps >= self.at:
            raise self.error
        return True


def test_two_callbacks_on_one_model_with_its_own_logger(tmp_path):
    """As `two_callbacks.py` of the issue."""
    model = ppo()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    before = list(model.logger.output_formats)
    for name in ("lesson-1", "lesson-2"):
        model.learn(64, callback=rltrack.TrackingCallback(name))
        assert status(name)[0] == "completed"
        assert steps(name) == [32, 64, 64]
        assert model.logger.output_formats == before
    assert type(model) is PPO


@pytest.mark.parametrize("make", [ppo, dqn])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), ("stopped", "interrupted (KeyboardInterrupt)")),
        (SystemExit(), ("stopped", "the program called sys.exit()")),
        (SystemExit(0), ("stopped", "the program called sys.exit()")),
        (SystemExit(2), ("failed", "SystemExit: 2")),
        (RuntimeError("the simulator\nfell over"), ("failed", "RuntimeError: the simulator fell over")),
    ],
)
@pytest.mark.slow
def test_learn_that_ends_badly_ends_the_recording_at_once(make, error, expected, tmp_path):
    model = make()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    before = list(model.logger.output_formats)
    callback = rltrack.TrackingCallback("cell")
    with pytest.raises(type(error)):
        model.learn(320, callback=[callback, Raises(error)])
    assert status("cell") == expected
    assert not Root().find("cell").is_locked()
    assert model.logger.output_formats == before
    assert type(model) is type(make())
    # the second cell: the same callback goes on, a new one with the name is asked to say so
    model.learn(32, callback=callback, reset_num_timesteps=False)
    assert status("cell")[0] == "completed"
    with pytest.raises(NameTaken, match="resume=True"):
        model.learn(32, callback=rltrack.TrackingCallback("cell"))
    model.learn(32, callback=rltrack.TrackingCallback("cell", resume=True), reset_num_timesteps=False)
    assert model.logger.output_formats == before


def test_an_error_before_the_first_step_and_one_in_another_callback_at_the_end():
    class AtStart(BaseCallback):
        def _on_training_start(self):
            raise RuntimeError("no display")

        def _on_step(self):
            return True

    class AtEnd(BaseCallback):
        def _on_training_end(self):
            raise RuntimeError("no disk")

        def _on_step(self):
            return True

    for index, other in enumerate((AtStart(), AtEnd())):
        model, name = ppo(), f"window-{index}"
        callbacks = [rltrack.TrackingCallback(name), other] if index == 0 else [other, rltrack.TrackingCallback(name)]
        with pytest.raises(RuntimeError):
            model.learn(64, callback=callbacks)
        # nobody told us; the same thread's next recording of this name ends it, and so does forgetting it
        model.learn(64, callback=rltrack.TrackingCallback(name, resume=True))
        assert status(name)[0] == "completed"
        attempts = [record for record in read_journal(Root().find(name).journal_file) if record["kind"] == "end"]
        assert attempts[0]["state"] == "stopped"


@pytest.mark.parametrize("wrap", ["list", "nested list", "eval", "every", "bar"])
def test_a_callback_inside_others(wrap):
    tracking = rltrack.TrackingCallback("inside")
    model, more = ppo(), {}
    if wrap == "list":
        given = CallbackList([tracking])
    elif wrap == "nested list":
        given = CallbackList([CallbackList([tracking])])
    elif wrap == "eval":
        env = ppo().get_env()
        given = EvalCallback(env, callback_after_eval=tracking, eval_freq=32, n_eval_episodes=1, verbose=0)
    elif wrap == "every":
        given = [EveryNTimesteps(32, tracking)]
    else:
        given = tracking
        pytest.importorskip("tqdm")
    model.learn(64, callback=given, progress_bar=wrap == "bar", **more)
    assert status("inside")[0] == "completed"
    assert steps("inside")[-1] == 64
    assert type(model) is PPO
    assert not any(isinstance(item, rltrack.JournalOutputFormat) for item in model.logger.output_formats)
    for item in given if isinstance(given, list) else [given]:
        assert "on_training_end" not in vars(item)
    ends = [record for record in read_journal(Root().find("inside").journal_file) if record["kind"] == "end"]
    assert len(ends) == 1


def test_two_callbacks_at_once_and_a_logger_shared_by_two_models(tmp_path):
    shared = configure(str(tmp_path), ["csv"])
    first, second = ppo(), dqn()
    for model in (first, second):
        model.set_logger(shared)
    first.learn(64, callback=[rltrack.TrackingCallback("a"), rltrack.TrackingCallback("b")])
    second.learn(64, callback=rltrack.TrackingCallback("c"))
    first.learn(64, callback=rltrack.TrackingCallback("d"))
    assert steps("a") == steps("b") == steps("d") == [32, 64, 64]
    assert all(step in (32, 64) for step in steps("a")), "the other model's numbers are not in it"
    assert [status(name)[0] for name in "abcd"] == ["completed"] * 4
    assert len(shared.output_formats) == 1
    assert (type(first), type(second)) == (PPO, DQN)


def test_a_model_can_be_saved_and_copied_while_it_is_watched(tmp_path):
    class Saves(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 40:
                self.model.save(tmp_path / "model.zip")
                self.copied = copy.copy(self.model)
                self.pickled = pickle.dumps(self.model.policy)
                self.name = type(self.model).__name__, isinstance(self.model, PPO)
            return True

    saves = Saves()
    model = ppo().learn(64, callback=[rltrack.TrackingCallback("saved"), saves])
    assert saves.name == ("PPO", True)
    assert type(saves.copied) is PPO
    loaded = PPO.load(tmp_path / "model.zip")
    assert type(loaded) is PPO
    assert loaded.num_timesteps == 40
    assert set(vars(loaded)) - set(vars(model)) == set()


def test_the_result_is_that_of_learn_without_us():
    plain, watched = ppo().learn(128), ppo().learn(128, callback=rltrack.TrackingCallback("same"))
    for one, other in zip(plain.policy.parameters(), watched.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_two_loops_on_one_model_and_learn_afterwards(tmp_path):
    model = ppo()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    before, threads, names = list(model.logger.output_formats), torch.get_num_threads(), set(vars(model))
    for index in range(2):
        loop = rltrack.TrainingLoop(model, total_timesteps=64, name=f"loop-{index}")
        assert loop.run().state.value == "completed"
    failing = rltrack.TrainingLoop(model, total_timesteps=64, name="failing")

    class Breaks:
        def on_step(self, progress, step_info):
            raise RuntimeError("no")

    failing.add_hook(Breaks())
    with pytest.raises(RuntimeError):
        failing.run()
    assert model.logger.output_formats == before
    assert torch.get_num_threads() == threads
    assert set(vars(model)) == names
    model.learn(64, callback=rltrack.TrackingCallback("after"))
    assert steps("after") == [32, 64, 64]
    assert not logging.getLogger("rltrack").handlers


def test_an_output_of_a_logger_says_nothing_after_its_end():
    output = rltrack.JournalOutputFormat("ended")
    logger = Logger(None, [output])
    logger.record("a", 1.0)
    logger.dump(1)
    logger.close()
    logger.record("a", 2.0)
    logger.dump(2)
    logger.close()
    assert steps("ended") == [1]


@pytest.mark.slow
def test_a_recording_that_is_dropped_ends():
    recording = Recording("dropped", AGENT)
    recording.metrics(1, {"a": 1.0})
    assert status("dropped")[0] == "running"
    del recording
    gc.collect()
    assert status("dropped") == ("stopped", "the program dropped the recording before its end")
    model = ppo()
    model.set_logger(Logger(None, [rltrack.JournalOutputFormat("dropped-too")]))
    model.learn(32)
    del model
    gc.collect()
    assert status("dropped-too")[0] == "stopped"


def test_a_second_cell_with_the_same_name_goes_on():
    first = Recording("cell", AGENT)
    first.metrics(5, {"a": 1.0})
    second = Recording("cell", AGENT, resume=True)
    assert not first.is_open
    second.metrics(6, {"a": 2.0})
    first.end("failed", "too late")
    assert status("cell")[0] == "running"
    second.end("completed", "done")
    assert steps("cell") == [5, 6]


def test_another_thread_does_not_take_a_run_over():
    first = Recording("busy", AGENT)
    caught = []

    def other():
        try:
            Recording("busy", AGENT, resume=True)
        except RunBusy as error:
            caught.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert first.is_open
    first.end("completed", "done")


def test_a_recording_that_cannot_begin_holds_nothing(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("rltrack.runs.writer.process_facts", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Recording("half", AGENT)
    assert not Root().find("half").is_locked()
    Recording("half", AGENT, resume=True).end("completed", "done")


def test_a_forked_child_does_not_end_its_parents_recording():
    recording = Recording("parent", AGENT)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            recording.__del__()
        os._exit(0)
    os.waitpid(child, 0)
    assert status("parent")[0] == "running"
    recording.end("completed", "done")


SCRIPT = """
import os, sys, threading
from rltrack.tracking import delivery
delivery.Delivery = lambda run: delivery.NoDelivery()
from rltrack.tracking.recording import Recording
recording = Recording("script", {"algorithm": "x"})
recording.metrics(1, {"a": 1.0})
BODY
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", ("stopped", "the program ended before the training did")),
        ("sys.exit(3)", ("stopped", "the program ended before the training did")),
        ("raise ValueError('at the end')", ("failed", "ValueError: at the end")),
        ("t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", ("stopped", "the program ended")),
        ("os._exit(0)", ("interrupted", "")),
    ],
)  # fmt: skip
def test_how_a_program_ends(body, expected):
    subprocess.run([sys.executable, "-c", SCRIPT.replace("BODY", body)], capture_output=True, timeout=60)
    state, reason = status("script")
    assert state == expected[0]
    assert reason.startswith(expected[1])


def test_an_error_of_an_earlier_cell_is_not_this_ones(monkeypatch):
    from rltrack.tracking import recording as module

    monkeypatch.setattr(sys, "last_value", NameError("a typo"), raising=False)
    recording = Recording("later", AGENT)
    recording._at_exit()
    assert status("later")[0] == "stopped"
    assert module._recordings.get(recording.run.path) is None


def handled(number, before):
    control = Control()
    previous = signal.signal(number, before)
    try:
        with control.signals():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == before, "put back"
    finally:
        signal.signal(number, previous)
    return control.reason


def test_a_dropped_connection_stops_as_sigterm_does_and_nohup_is_left_alone():
    assert handled(signal.SIGHUP, signal.SIG_DFL) == "SIGHUP received"
    assert handled(signal.SIGHUP, signal.SIG_IGN) is None
    heard = []
    assert handled(signal.SIGHUP, lambda number, frame: heard.append(number)) == "SIGHUP received"
    assert heard == [signal.SIGHUP], "what was there is called too"


def test_a_training_stops_at_a_boundary_with_a_version_when_the_connection_drops():
    class Drops:
        def on_iteration_end(self, progress, stats):
            if progress.env_steps == 64:
                os.kill(os.getpid(), signal.SIGHUP)

    loop = rltrack.TrainingLoop(ppo(), total_timesteps=320, name="dropped")
    loop.add_hook(Drops())
    statistics = loop.run()
    assert (statistics.state.value, statistics.reason, statistics.env_steps) == ("stopped", "SIGHUP received", 64)
    assert Root().find("dropped").store().find("last").env_steps == 64
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


TERMINAL = """
import os, signal
import rltrack
from rltrack.tracking import delivery
delivery.Delivery = lambda run: delivery.NoDelivery()
from stable_baselines3 import PPO
class Waits:
    def on_iteration_end(self, progress, stats):
        if progress.env_steps == 64:
            os.write(PIPE, b"x")
            signal.pause()
model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=0)
loop = rltrack.TrainingLoop(model, total_timesteps=10**6, name="terminal", hooks=[Waits()])
print(loop.run().reason, flush=True)
"""


@pytest.mark.slow
def test_a_terminal_that_is_gone_does_not_end_the_training_with_an_error():
    """A real terminal, closed as sshd does: output to it is an error from then on."""
    reader, writer = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        os.set_inheritable(writer, True)
        os.execv(sys.executable, [sys.executable, "-c", TERMINAL.replace("PIPE", str(writer))])
    os.close(writer)
    drained = threading.Thread(target=lambda: _drain(terminal, stop), daemon=True)
    stop = threading.Event()
    drained.start()
    assert os.read(reader, 1) == b"x"
    stop.set()
    os.kill(child, 0)
    drained.join(1)
    os.close(terminal)
    _, code = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(code) == 0
    assert status("terminal") == ("stopped", "SIGHUP received")
    assert Root().find("terminal").store().find("last").env_steps == 64


def _drain(terminal, stop):
    import select

    with contextlib.suppress(OSError):
        while not stop.is_set():
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 1 << 16)
