"""A training that ended before its first version begins again from zero: the same one only if its environments begin alike."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO

from rltrack import TrainingLoop
from rltrack.journal import read_journal
from rltrack.runs import Root


class Walk(gym.Env):
    """Draws from a generator of its own; seeded or not."""

    observation_space = gym.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    seed = None

    def __init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.place, self.steps = 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.rng.uniform(-1, 1) + self.np_random.uniform(-1, 1), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place += 0.1 if action else -0.1
        self.steps += 1
        return np.array([self.place], np.float32), -abs(self.place), False, self.steps >= 20, {}


class Seeded(Walk):
    seed = 5


class SeededInSlot(Seeded):
    """Can be replayed only."""

    __slots__ = ("kept",)

    def __init__(self):
        super().__init__()
        self.kept = {"left": 0}


class Locked(Walk):
    """Cannot be looked into."""

    def __init__(self):
        super().__init__()
        self.inside = (number for number in range(3))


class SeededButLocked(Locked, Seeded):
    pass


class Noise(gym.RewardWrapper):
    """A user's wrapper with an unseeded generator, around an environment that is seeded."""

    def __init__(self, env):
        super().__init__(env)
        self.rng = np.random.default_rng()

    def reward(self, reward):
        return reward + self.rng.normal()


class Ends:
    def on_iteration_end(self, progress, stats):
        raise RuntimeError("before the first version")


@pytest.mark.parametrize(
    ("build", "exact"),
    [
        (Walk, False),
        (Seeded, True),
        (SeededInSlot, True),
        (Locked, False),
        (SeededButLocked, True),  # it can be built again, by its name, and the first observation is the same
        (lambda: type("OfAScript", (SeededButLocked,), {})(), False),
        (lambda: Noise(Seeded()), False),
        (lambda: gym.wrappers.RecordEpisodeStatistics(Seeded()), True),
        (lambda: gym.make("CartPole-v1"), True),
        (lambda: gym.make("Acrobot-v1").unwrapped, True),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_start_from_zero_is_exact_only_where_environments_begin_alike(build, exact, tmp_path):
    def train(hooks):
        agent = PPO("MlpPolicy", build(), seed=0, n_steps=32, batch_size=32, n_epochs=1)
        loop = TrainingLoop(
            agent, total_timesteps=64, eval_freq=None, hooks=hooks, name="run", resume=True, root=tmp_path
        )
        loop.delivers = False
        return loop.run()

    with pytest.raises(RuntimeError, match="before the first version"):
        train([Ends()])
    train([])
    records = list(read_journal(Root(tmp_path).find("run").journal_file))
    assert [record["exact"] for record in records if record["kind"] == "attempt"] == [True, exact]
    said = " ".join(record["message"] for record in records if record["kind"] == "warning")
    assert "Started again from zero" in said
    assert ("do not provably begin" in said) is not exact
