"""Runs whose policies are as good as they are told to be: the return of an episode is 5 times the skill, and a little noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rltrack.agents import POLICY_PARTS
from rltrack.checkpoints import CheckpointStore, Retention
from rltrack.runs import Root, RunDirectory
from rltrack.training.trainer import Trainer

TINY = "tests.support.agents:rltrack-tests/Tiny-v0"


def tiny_config(name: str, *, seed: int = 0, **environment):
    return {
        "name": name,
        "seed": seed,
        "agent": {
            "algorithm": "PPO",
            "hyperparameters": {"n_steps": 16, "batch_size": 16, "n_epochs": 1},
            "device": "cpu",
        },
        "environment": {"id": TINY, **environment},
        "training": {"total_timesteps": 32, "eval_freq": 16},
        "evaluation": {"episodes": 5},
        "tracking": {"video": False},
    }


def train_tiny(root: Path, name: str, **more) -> RunDirectory:
    """A run of two iterations."""
    trainer = Trainer(tiny_config(name, **more), root=root)
    trainer.loop.delivers = False
    trainer.train()
    return Root(root).find(name)


def add_skill(run: RunDirectory, skill: float) -> str:
    """Commit a version whose policy always takes the action `skill`; return its name."""
    store = CheckpointStore(run.path / "checkpoints", Retention(keep_last=1000, keep_best=1000))
    state = store.read(store.find("last"), POLICY_PARTS)
    weights = state["policy"]["policy"]
    weights["action_net.weight"] = np.zeros_like(weights["action_net.weight"])
    weights["action_net.bias"] = np.full_like(weights["action_net.bias"], skill)
    return store.commit(state, env_steps=32, score=5 * skill).name


def run_of_skill(root: Path, name: str, skill: float, **more) -> RunDirectory:
    """A finished run whose best policy takes the action `skill`."""
    run = train_tiny(root, name, **more)
    add_skill(run, skill)
    return run
