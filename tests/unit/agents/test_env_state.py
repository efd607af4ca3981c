"""How environments are taken and put back, and how it is found out what works."""

from __future__ import annotations

import itertools
import random

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from rltrack.agents.env_state import StateAccess, TrainingEnvs
from rltrack.agents.env_state.layers import has_own_state
from rltrack.agents.env_state.probe import probe
from rltrack.agents.random_state import capture_random
from rltrack.errors import ConfigurationError, NotCapturable, ResumeMismatch
from rltrack.training.verify import first_difference


class Drift(gym.Env):
    """Adds up noise; subclasses keep the sum in places that are more or less easy to reach."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.put(0.0)

    def put(self, total):
        self.total = total

    def get(self):
        return self.total

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.put(self.np_random.normal())
        return self.look(), {}

    def look(self):
        return np.array([self.get(), float(self.np_random.integers(10))])

    def step(self, action):
        self.put(self.get() * 0.9 + self.np_random.normal() * (1 + action))
        return self.look(), self.get(), abs(self.get()) > 5, False, {}


class Handle(Drift):
    """The sum is in a native library, as it were: behind a handle, out of reach of pickle."""

    memory: dict = {}  # noqa: RUF012
    handles = itertools.count()

    def __init__(self):
        self.handle = next(self.handles)
        super().__init__()

    def put(self, total):
        self.memory[self.handle] = total

    def get(self):
        return self.memory[self.handle]


class OwnState(Handle):
    """The same, with the way in that rltrack asks for."""

    def get_state(self):
        return {"total": self.get()}

    def set_state(self, state):
        self.put(state["total"])


class Locked(Handle):
    """Cannot even be pickled, but a replay gets there."""

    def __init__(self):
        super().__init__()
        self.generator = (number for number in range(3))


class Grudge(Locked):
    """A reset depends on what was played before."""

    def reset(self, *, seed=None, options=None):
        self.resets = getattr(self, "resets", 0) + 1
        _, info = super().reset(seed=seed)
        self.put(self.get() + 0.001 * self.resets)
        return self.look(), info


class GlobalRandom(Drift):
    """Draws from the process-wide stream."""

    def step(self, action):
        self.put(self.get() * 0.9 + np.random.normal())
        return self.look(), self.get(), abs(self.get()) > 5, False, {}


class Views(Drift):
    """The sum is read through one view of an array and written through another, in both memory orders."""

    def __init__(self):
        self.last = np.zeros((3, 2), order="F")
        self.tail = self.last[::-1][:2, 1:]
        self.parts = [self.tail[:, 0], np.zeros(4)[1:]]
        super().__init__()

    def put(self, total):
        self.last[2, 1] = total

    def get(self):
        return float(self.parts[0][0])


@pytest.mark.parametrize(
    ("env", "method"),
    [
        (Drift, "attributes"),
        (Views, "attributes"),
        (Handle, "replay"),
        (OwnState, "own"),
        (Locked, "replay"),
        (Grudge, None),
        (GlobalRandom, "attributes"),
    ],
)
def test_the_probe_finds_what_works(env, method):
    before = capture_random()
    finding = probe(lambda: gym.wrappers.TimeLimit(env(), 40))
    assert first_difference(capture_random(), before)[1] is None, "training's random streams are left alone"
    assert finding.method == method
    if method is None:
        assert "Grudge" in " ".join(finding.reasons)


def envs_of(build, n_envs=2, **more):
    venv = VecNormalize(VecFrameStack(make_vec_env(build, n_envs, seed=3), 2))
    envs = TrainingEnvs(venv, lambda: DummyVecEnv([build]).envs[0], **more)
    envs.prepare()
    venv.reset()
    envs.try_capture()
    return envs


def play(envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [envs.venv.step(rng.integers(2, size=envs.venv.num_envs))[:3] for _ in range(steps)]


@pytest.mark.parametrize(
    ("env", "tier"), [(Drift, "capture"), (Views, "capture"), (OwnState, "capture"), (Locked, "replay")]
)
def test_a_vectorised_environment_goes_on(env, tier):
    one, other = envs_of(env), envs_of(env)
    assert one.tier == tier
    assert one.is_probed
    play(one, 37)
    state = one.capture()
    expected = play(one, 50, seed=1)
    play(other, 11, seed=2)
    other.restore(state)
    found = play(other, 50, seed=1)
    assert first_difference(expected, found)[1] is None
    assert first_difference(one.venv.obs_rms.mean, other.venv.obs_rms.mean)[1] is None


def test_a_replay_that_gives_something_else_is_an_error():
    one, other = envs_of(Locked), envs_of(Locked)
    play(one, 20)
    state = one.capture()
    for env in other._base.envs:
        env.unwrapped.look = lambda env=env: np.array([env.unwrapped.get(), 0.5])  # another version of the environment
    with pytest.raises(ResumeMismatch, match=r"replaying the \d+ actions since its last reset"):
        other.restore(state)


def test_other_layers_are_refused():
    one = envs_of(Drift)
    other = TrainingEnvs(make_vec_env(Drift, 2), None)
    other.prepare()
    other.venv.reset()
    with pytest.raises(NotCapturable, match=r"saved with the layers VecNormalize > VecFrameStack"):
        other.restore(one.capture())


def test_without_a_probe_only_taking_is_trusted():
    def unprobed(env):
        envs = TrainingEnvs(make_vec_env(env, 1, seed=0), None, wants_probe=False)
        envs.prepare()
        envs.venv.reset()
        envs.try_capture()
        return envs

    assert (unprobed(Drift).tier, unprobed(Drift).is_probed) == ("capture", False)
    locked = unprobed(Locked)
    assert locked.tier == "inexact"
    assert "Locked.generator is a generator" in locked.reason
    assert "no copy could be built" in locked.reason


def test_what_can_no_longer_be_taken_becomes_inexact():
    envs = envs_of(Drift)
    assert envs.capture() is not None
    envs._base.envs[0].unwrapped.window = (number for number in range(3))
    assert envs.capture() is None
    assert envs.tier == "inexact"
    assert "Drift.window" in envs.reason


def test_cut():
    one, other = envs_of(Drift, cut=True), envs_of(Drift, cut=True)
    play(one, 10)
    assert one.capture() is None, "between two cuts there is nothing to take"
    one.cut([3, 20])
    state = one.capture()
    expected = play(one, 30, seed=1)
    play(other, 7)
    other.restore(state)
    assert first_difference(expected, play(other, 30, seed=1))[1] is None
    with pytest.raises(ConfigurationError, match=r"cut_freq rebuilds the environments"):
        TrainingEnvs(make_vec_env(Drift, 1), None, cut=True).prepare()


def test_own_state_means_no_arguments_in_and_one_out():
    assert has_own_state(OwnState())
    assert not has_own_state(Drift())

    class Mujoco(Drift):
        def get_state(self):
            return 1

        def set_state(self, position, velocity):
            pass

    assert not has_own_state(Mujoco())


def test_a_custom_vectorised_environment_may_bring_its_own_state():
    class Native(DummyVecEnv):
        pass

    class Foreign(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

    assert envs_of(Drift).tier == "capture"
    wrapped = TrainingEnvs(Foreign(make_vec_env(Drift, 1)), Drift)
    wrapped.prepare()
    assert wrapped.tier == "capture"


@pytest.mark.slow
def test_workers_without_access_are_inexact_and_say_what_to_do():
    from stable_baselines3.common.vec_env import SubprocVecEnv

    venv = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    try:
        envs = TrainingEnvs(venv, None)
        envs.prepare()
        assert envs.tier == "inexact"
        assert "wrapper_class=rltrack.agents.StateAccess" in envs.reason
    finally:
        venv.close()


def test_access_reports_errors_instead_of_ending_its_worker():
    env = StateAccess(Locked())
    env.reset(seed=1)
    assert "Locked.generator" in env.capture_state("attributes")["error"]
    random_before = random.getstate()
    env.reset(seed=2)
    assert random.getstate() == random_before, "only in a worker does a reset seed the process"


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.slow
def test_mujoco_models_that_change_come_back(randomised):
    pytest.importorskip("mujoco")

    def build():
        env = gym.make("Hopper-v5")
        return env

    def play_on(env, actions):
        return [env.step(action)[0] for action in actions]

    from rltrack.agents.env_state.layers import capture, gym_layers, restore

    one, other = build(), build()
    one.reset(seed=1)
    other.reset(seed=2)
    if randomised:
        one.unwrapped.model.body_mass[:] *= 1.3
        one.unwrapped.model.opt.gravity[2] = -5.0
        one.unwrapped.model.opt.timestep = 0.003
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 3))
    play_on(one, actions[:15])
    state = capture(list(gym_layers(one)), [one.unwrapped], "attributes")
    expected = play_on(one, actions[15:])
    restore(list(gym_layers(other)), [other.unwrapped], state)
    assert first_difference(expected, play_on(other, actions[15:]))[1] is None
