"""What makes a resume differ is said; random kills of SB3's agents change nothing (`tests/contract/test_agents.py`: a crash)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rltrack import TrainingLoop
from rltrack.checkpoints.encoding import encode
from rltrack.config import LoopSettings
from rltrack.errors import NameTaken
from rltrack.journal import read_journal
from rltrack.runs import Root
from tests.resume.test_same_as_learn import build

sb3 = pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[2]
WALL_CLOCK = ("time", "seconds")


def records(name):
    """What training produced, without what the wall clock says."""
    kept = []
    for record in read_journal(Root().find(name).journal_file):
        if "seq" in record:
            values = {key: value for key, value in record.get("values", {}).items() if not key.startswith("time/")}
            kept.append({**{k: v for k, v in record.items() if k not in WALL_CLOCK}, "values": values})
    return kept


def fingerprint(state):
    """Every byte of the state but the wall clock's and what is dead at a boundary."""
    state = {key: value for key, value in state.items() if key not in ("environment", "loop")}
    state["counters"] = {
        **state["counters"],
        "episodes": [(item["r"], item["l"]) for item in state["counters"]["episodes"]],
    }
    state["rollout"] = {**state["rollout"], "pending": {}}
    replay = state["buffers"]["replay"]
    if "rows" in replay:
        state["buffers"] = {**replay, "rows": [[first, dict(rows)] for first, rows in one_chunk(replay["rows"])]}
    return encode(state)[:2]


def one_chunk(ring):
    """The rows as if they had never been stored in pieces."""
    chunks = list(ring.chunks())
    yield chunks[0][0], {name: np.concatenate([rows[name] for _, rows in chunks]) for name in sorted(chunks[0][1])}


def loop_for(case, name, **more):
    model, total = build(case)
    return TrainingLoop(
        model, total_timesteps=total, checkpoint_freq=max(total // 5, 1), eval_freq=None, name=name, resume=True, **more
    )


def stop_after(loop, fraction):
    total = loop.settings.training.total_timesteps
    hook = type("Stop", (), {"on_iteration_end": lambda self, p, i: p.env_steps >= fraction * total and loop.stop()})
    loop.add_hook(hook())


def test_an_environment_that_cannot_be_taken_is_labelled(own_root, monkeypatch):
    import gymnasium as gym

    class Holder(gym.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.handles = {"one": (number for number in range(3))}

    def model():
        return sb3.PPO("MlpPolicy", Holder(gym.make("CartPole-v1")), n_steps=64, seed=0, device="cpu")

    first = TrainingLoop(model(), total_timesteps=256, name="held")
    stop_after(first, 0.5)
    first.run()
    settings = LoopSettings.model_validate({"training": {"total_timesteps": 256}, "checkpoints": {"resume": "strict"}})
    strict = TrainingLoop(model(), settings=settings, name="held", resume=True)
    from rltrack.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"Holder\.handles is a dict"):
        strict.run()
    assert TrainingLoop(model(), total_timesteps=256, name="held", resume=True).run().env_steps == 256
    kinds = list(read_journal(Root().find("held").journal_file))
    assert any(record["kind"] == "warning" and "Holder.handles" in record["message"] for record in kinds)
    assert [record["exact"] for record in kinds if record["kind"] == "attempt"] == [True, False]


@pytest.mark.slow
def test_other_threads_are_another_configuration(own_root):
    from rltrack.agents.sb3 import SB3Agent

    first = loop_for("ppo", "threads")
    stop_after(first, 0.5)
    first.run()
    model, total = build("ppo")
    second = TrainingLoop(
        SB3Agent(model, threads=2), total_timesteps=total, checkpoint_freq=total // 5, name="threads", resume=True
    )
    with pytest.raises(NameTaken, match=r"agent\.threads: 1 → 2"):
        second.run()


SCRIPT = """
import sys
from tests.resume.test_exact import loop_for
loop = loop_for(sys.argv[1], sys.argv[2])
loop.delivers = False
loop.run()
"""


@pytest.mark.nightly  # each time: test_kills, in less than a minute, and the matrix
@pytest.mark.parametrize("case", ["ppo", "dqn", "sac"])
def test_random_sigkills_change_nothing(case, own_root):
    environment = {**os.environ, "RLTRACK_ROOT": str(own_root), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", SCRIPT, case]
    subprocess.run([*command, "whole"], env=environment, check=True, timeout=120, cwd=PROJECT)
    rng = random.Random(case)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen([*command, "killed"], env=environment, cwd=PROJECT)
        journal = own_root / "runs" / "killed" / "journal.jsonl"
        while process.poll() is None and not journal.exists():
            time.sleep(0.01)
        size = journal.stat().st_size
        while process.poll() is None and journal.stat().st_size == size:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.25))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    else:
        subprocess.run([*command, "killed"], env=environment, check=True, timeout=120, cwd=PROJECT)
    assert kills >= 1
    whole, killed = Root(own_root).find("whole").store(), Root(own_root).find("killed").store()
    one, other = whole.read(whole.find("last")), killed.read(killed.find("last"))
    assert fingerprint(one) == fingerprint(other)
    assert records("killed") == records("whole")
