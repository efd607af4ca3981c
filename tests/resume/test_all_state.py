"""Whatever has a state comes back: strategies, early stopping, hooks, evaluations under way; a crash changes no bit."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from rltrack.config import TrainingConfig
from rltrack.errors import CheckpointFailed, JournalFailed
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.training.trainer import Trainer
from rltrack.training.verify import comparable, first_difference, records_of

pytest.importorskip("stable_baselines3")
PPO = {"algorithm": "PPO", "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "learning_rate": 0.003,
                                               "policy_kwargs": {"net_arch": [16]}}}  # fmt: skip
SAC = {"algorithm": "SAC", "hyperparameters": {"train_freq": 4, "learning_starts": 50, "buffer_size": 200, "batch_size": 8,
                                               "policy_kwargs": {"net_arch": [8]}}}  # fmt: skip


class Crash(Exception):
    pass


class CrashAt:
    def __init__(self, env_steps):
        self.env_steps = env_steps

    def on_iteration_end(self, progress, stats):
        if progress.env_steps >= self.env_steps:
            raise Crash


class Remembers:
    """A hook with a state, which stops training by it."""

    def __init__(self, patience=None):
        self.seen = []
        self.patience = patience

    def on_iteration_end(self, progress, stats):
        self.seen.append(progress.env_steps)
        if self.patience is not None and len(self.seen) == self.patience:
            progress.request_stop(f"saw {self.patience} iterations")

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def config(name, training, agent=PPO, env="CartPole-v1", **more):
    return TrainingConfig.from_mapping(
        {
            "name": name,
            "seed": 4,
            "agent": agent,
            "environment": {"id": env, "n_envs": 1 if agent is SAC else 2},
            "training": {"checkpoint_seconds": None, **training},
            "evaluation": {"episodes": 3, **more.pop("evaluation", {})},
            **more,
        }
    )


def everything(name):
    run = Root().find(name)
    store = run.store()
    best = [store.read(version) for version in store.versions() if version.score is not None]
    return {**comparable(store.read(store.find("last"))), "best": best, "journal": records_of(run)}


def train(settings, *hooks):
    trainer = Trainer(settings, hooks=hooks)
    try:
        return trainer.train()
    except Crash:
        return None


CASES = {
    "timesteps": ({"total_timesteps": 1000, "eval_freq": 300, "checkpoint_freq": 200}, {}),
    "episodic": ({"strategy": "episodic", "total_episodes": 60, "eval_freq": 15, "checkpoint_freq": 10}, {}),
    "episodic-sac": ({"strategy": "episodic", "total_episodes": 4, "eval_freq": 2, "checkpoint_freq": 1},
                     {"agent": SAC, "env": "Pendulum-v1"}),
    "mixed": ({"strategy": "mixed", "total_timesteps": 2000, "total_episodes": 90, "eval_freq": 500, "eval_freq_episodes": 20,
               "checkpoint_freq": 300}, {}),
    "adaptive": ({"strategy": "adaptive", "total_timesteps": 1500, "eval_freq": 200, "checkpoint_freq": 250}, {}),
    "early stopping": ({"total_timesteps": 6000, "eval_freq": 200, "checkpoint_freq": 250, "enable_early_stopping": True,
                        "patience": 3, "min_improvement": 30.0}, {}),
    "converged": ({"total_timesteps": 20000, "eval_freq": 300, "checkpoint_freq": 250, "convergence_threshold": 25.0}, {}),
    "beside": ({"total_timesteps": 2000, "eval_freq": 400, "checkpoint_freq": 300},
               {"evaluation": {"beside_training": True}}),
    "beside adaptive": ({"strategy": "adaptive", "total_timesteps": 2000, "eval_freq": 200, "checkpoint_freq": 250},
                        {"evaluation": {"beside_training": True}}),
}  # fmt: skip
NIGHTLY = ("beside",)
"""Part of another case."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.nightly) if case in NIGHTLY else case for case in CASES],
)
@pytest.mark.slow
def test_a_crash_changes_nothing(case, own_root, request):
    if "beside" in case:
        request.getfixturevalue("forked")
    training, more = CASES[case]
    hooks = [Remembers(), Remembers()]
    whole = train(config("whole", training, **dict(more)), hooks[0])
    for fraction in (0.3, 0.6, 0.9):  # of what it took, so that each case is cut where it matters
        assert train(config("pieces", training, **dict(more)), Remembers(), CrashAt(fraction * whole.env_steps)) is None
    resumed = train(config("pieces", training, **dict(more)), hooks[1])
    assert first_difference(everything("whole"), everything("pieces"))[1] is None
    assert hooks[0].seen == hooks[1].seen
    assert (resumed.reason, resumed.env_steps) == (whole.reason, whole.env_steps)
    attempts = [record for record in read_journal(Root().find("pieces").journal_file) if record["kind"] == "attempt"]
    assert [record["exact"] for record in attempts] == [True] * 4
    assert attempts[-1]["env_steps"] > 0


@pytest.mark.slow
def test_evaluation_beside_training_gives_the_same_numbers(own_root, forked):
    training = {"total_timesteps": 1000, "eval_freq": 250, "checkpoint_freq": 300}
    here = train(config("here", training))
    beside = train(config("beside", training, evaluation={"beside_training": True}))
    assert [(e.env_steps, e.returns) for e in here.evaluations] == [
        (e.env_steps, e.returns) for e in beside.evaluations
    ]
    best = Root().find("here").store().find("best"), Root().find("beside").store().find("best")
    assert (best[0].env_steps, best[0].score) == (best[1].env_steps, best[1].score)


@pytest.mark.slow
def test_a_hook_that_asked_to_stop_has_stopped(own_root):
    training = {"total_timesteps": 5000, "checkpoint_freq": 100, "eval_freq": None}
    assert train(config("h", training), Remembers(20)).reason == "saw 20 iterations"
    assert train(config("h", training), Remembers(20)).reason == "saw 20 iterations"


def no_space(monkeypatch, when):
    """Every write fails from the moment that `when(thread name)` says so, as on a full disk."""
    real = os.write

    def write(descriptor, data):
        if when(threading.current_thread().name):
            real(descriptor, bytes(data)[: len(data) // 2])  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)


@pytest.mark.slow
@pytest.mark.parametrize("on_failure", ["stop", "continue"])
@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_a_full_disk_during_a_checkpoint(on_failure, when, own_root, monkeypatch):
    training = {"total_timesteps": 1000, "checkpoint_freq": 200, "eval_freq": None}
    whole = train(config("whole", training))
    run_config = config("full", training, checkpoints={"on_failure": on_failure})
    writes = {"done": 0}

    def full(thread):
        writes["done"] += thread.startswith("rltrack-checkpoints")
        return writes["done"] == 45 if when == "in the middle" else writes["done"] > 80

    with monkeypatch.context() as patched:
        no_space(patched, lambda thread: thread.startswith("rltrack-checkpoints") and full(thread))
        if on_failure == "stop" or when == "at the end":
            with pytest.raises(CheckpointFailed, match="No space left on device"):
                train(run_config)
        else:
            assert train(run_config).env_steps == whole.env_steps
    store = Root().find("full").store()
    assert store.versions()
    assert all(store.verify(version) is None for version in store.versions())
    assert not list(store.folder.glob(".tmp-*"))
    messages = [r["message"] for r in read_journal(Root().find("full").journal_file) if r["kind"] == "warning"]
    assert any("Training continues" in message for message in messages) == (on_failure == "continue")
    assert train(run_config).env_steps == whole.env_steps
    assert first_difference(everything("whole"), everything("full"))[1] is None


@pytest.mark.slow
def test_a_journal_that_cannot_be_written_stops_training(own_root, monkeypatch):
    training = {"total_timesteps": 1000, "checkpoint_freq": 200, "eval_freq": None}
    train(config("whole", training))
    calls = {"main": 0}

    def full(thread):
        calls["main"] += thread == "MainThread"
        return thread == "MainThread" and calls["main"] > 15

    with monkeypatch.context() as patched:
        no_space(patched, full)
        with pytest.raises(JournalFailed, match="No space left on device"):
            train(config("full", training))
    store = Root().find("full").store()
    assert all(store.verify(version) is None for version in store.versions())
    train(config("full", training))
    assert first_difference(everything("whole"), everything("full"))[1] is None
