"""Environments that a script built: what works is found out on copies, which share nothing with them."""

from __future__ import annotations

import io
import threading

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from gymnasium.utils import EzPickle
from stable_baselines3.common.env_util import make_vec_env

from rltrack.agents.env_state import StateAccess, TrainingEnvs
from rltrack.agents.env_state.probe import Finding
from rltrack.agents.random_state import capture_random
from rltrack.training.verify import first_difference


class Walk(gym.Env):
    """A walk on a line, and the number of steps; subclasses keep or use them in other ways."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)
    length = 100

    def __init__(self):
        self.put(0.0)
        self.steps = 0

    def put(self, place):
        self.place = place

    def get(self):
        return self.place

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.put(float(self.np_random.uniform(-1, 1)))
        self.steps = 0
        return self.look(), {}

    def look(self):
        return np.array([self.get(), 0.0])

    def step(self, action):
        self.steps += 1
        self.put(self.get() + (0.1 if action else -0.1))
        return self.look(), self.reward(), False, self.steps >= self.length, {}

    def reward(self):
        return -abs(self.get())


class InVector(Walk):
    def put(self, place):
        self.vector = pytest.importorskip("pygame").Vector2(place, 0)

    def get(self):
        return self.vector.x


class InBuffer(Walk):
    def __init__(self):
        self.buffer = io.BytesIO()
        super().__init__()

    def reward(self):
        self.buffer.write(b"x")
        return float(self.buffer.tell())


class HasSlot(gym.Env):
    __slots__ = ("place",)


class InSlot(HasSlot, Walk):
    pass


class Simulator(EzPickle):
    def __init__(self):
        EzPickle.__init__(self)
        self.place = 0.0


class InEzPickle(Walk):
    def __init__(self):
        self.simulator = Simulator()
        super().__init__()

    def put(self, place):
        self.simulator.place = place

    def get(self):
        return self.simulator.place


class AroundAnother(Walk):
    """Only passes on; what pickle makes of the other one has never been reset."""

    def __init__(self):
        self.inner = gym.wrappers.OrderEnforcing(InEzPickle())
        self.inner.unwrapped._ezpickle_args, self.inner.unwrapped._ezpickle_kwargs = (), {}

    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed)

    def step(self, action):
        return self.inner.step(action)


class PartialState(Walk):
    """Its own way in is for something else, and forgets the number of steps."""

    def get_state(self):
        return self.place

    def set_state(self, state):
        self.place = state


class WholeState(PartialState):
    def get_state(self):
        return self.place, self.steps

    def set_state(self, state):
        self.place, self.steps = state


class BoundMethod(Walk):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(5)
        self.noise = self.generator.normal

    def reward(self):
        return float(self.noise())


class InClosure(Walk):
    def __init__(self):
        super().__init__()
        count = 0

        def following():
            nonlocal count
            count += 1
            return float(count)

        self.following = following

    def reward(self):
        return self.following()


KINDS = [
    (Walk, "attributes"),
    (InVector, "attributes"),
    (InBuffer, "attributes"),
    (BoundMethod, "attributes"),
    (PartialState, "attributes"),
    (WholeState, "own"),
    (InSlot, "replay"),
    (InEzPickle, "replay"),
    (InClosure, None),
    (AroundAnother, None),
]


def envs_of(env, **more):
    envs = TrainingEnvs(make_vec_env(env, 1, seed=3), None, **more)
    envs.prepare()
    envs.venv.reset()
    envs.try_capture()
    return envs


def play(envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [envs.venv.step(rng.integers(2, size=1))[:3] for _ in range(steps)]


@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_what_is_chosen_goes_on_with_the_same_bits(kind, method):
    one, other = envs_of(kind), envs_of(kind)
    found = one.describe()
    assert (found["method"], found["probed"]) == (method, True), found["reason"]
    if method is None:
        assert (found["tier"], one.capture()) == ("inexact", None)
        return
    play(one, 130)
    state = one.capture()
    expected = play(one, 150, seed=1)
    play(other, 11, seed=2)
    other.restore(state)
    assert first_difference(expected, play(other, 150, seed=1))[1] is None


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_training_goes_on_as_if_nothing_had_been_copied(kind):
    random = capture_random()
    tried = envs_of(kind)
    assert first_difference(capture_random(), random)[1] is None
    untried = envs_of(kind, wants_probe=False)
    assert first_difference(play(tried, 50), play(untried, 50))[1] is None


def test_copies_write_to_no_file_and_read_it_from_where_it_was(tmp_path):
    log, data = tmp_path / "log", tmp_path / "data"
    data.write_text("".join(f"{number}\n" for number in range(2000)))

    class Files(Walk):
        def __init__(self):
            super().__init__()
            self.log, self.data = open(log, "a"), open(data)  # noqa: SIM115

        def reward(self):
            self.log.write("step\n")
            return float(self.data.readline())

    envs = envs_of(Files)
    files = envs._base.envs[0].unwrapped
    files.log.flush()
    assert log.read_text() == ""
    assert files.data.tell() == 0
    assert envs.tier == "inexact", "where it reads is not taken, and a reset does not begin again"


def test_what_cannot_be_copied_is_inexact_and_says_why():
    class Deletes(Walk):
        def __del__(self):
            pass

    class Locked(Walk):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    class LockedWithOwnState(Locked, WholeState):
        pass

    said = envs_of(Locked).describe()
    assert (said["tier"], said["probed"]) == ("inexact", False)
    assert "no copy could be made" in said["reason"]
    assert "Locked.lock is a lock" in said["reason"]
    assert "__del__" in envs_of(Deletes).reason
    assert envs_of(Deletes, wants_probe=False).tier == "capture", "as its user vouches for it"
    said = envs_of(LockedWithOwnState).describe()
    assert (said["tier"], said["method"], said["probed"]) == ("capture", "own", False)


def test_what_cannot_be_played_at_random_is_only_taken():
    class Refuses(Walk):
        def step(self, action):
            raise ValueError("not like this")

    said = envs_of(Refuses).describe()
    assert (said["tier"], said["probed"]) == ("capture", False)


def test_a_worker_finds_out_on_its_own_copies():
    assert StateAccess(InSlot()).probe_copies().method == "replay"
    assert isinstance(StateAccess(InClosure()).probe_copies(), Finding)


def test_a_large_environment_is_not_copied(monkeypatch):
    monkeypatch.setattr("rltrack.agents.env_state.copies._LARGEST_BYTES", 10)
    said = envs_of(Walk).describe()
    assert (said["tier"], said["probed"]) == ("capture", False)
