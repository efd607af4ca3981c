"""Small models, and the comparison of a plain training with an accelerated one."""

from __future__ import annotations

import copy
import random

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import rltrack
from rltrack.acceleration.parts import optimizers_of
from rltrack.acceleration.verification import same

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)


class WalkEnv(gym.Env):
    """A noisy walk whose episodes end by themselves or at a time limit; infos hold arrays and containers."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-10.0, 10.0, (3,), np.float32)
        self._state = np.zeros(3, np.float32)
        self._steps = 0

    def _observation(self):
        space = self.observation_space
        if isinstance(space, spaces.Discrete):
            return int(abs(self._state[0] * 10)) % int(space.n)
        return np.resize(self._state, space.shape).astype(space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._state = self.np_random.normal(size=3).astype(np.float32)
        self._steps = 0
        return self._observation(), {}

    def step(self, action):
        self._steps += 1
        push = float(np.sum(action))
        self._state = (0.9 * self._state + 0.1 * push + 0.1 * self.np_random.normal(size=3)).astype(np.float32)
        ended = bool(self._state[0] > 1.2)
        infos = {"position": self._state, "nested": {"steps": [self._steps]}, "is_success": ended}
        return self._observation(), float(self._state[1] - 0.1 * push), ended, self._steps >= 17, infos


def build(
    algorithm, action_space, n_envs=1, normalize=False, observation_space=None, policy="MlpPolicy", seed=3, **kwargs
):
    """Return a model, the same for the same arguments."""
    torch.set_num_threads(1)
    env = DummyVecEnv([lambda: Monitor(WalkEnv(action_space, observation_space)) for _ in range(n_envs)])
    env = VecNormalize(env) if normalize else env
    return algorithm(policy, env, seed=seed, device="cpu", **copy.deepcopy(kwargs))


class Recorded(KVWriter):
    """Keeps what was logged, without times."""

    def __init__(self):
        self.dumps = []

    def write(self, key_values, key_excluded, step=0):
        self.dumps.append((step, {key: own for key, own in key_values.items() if not key.startswith("time/")}))

    def close(self):
        pass


def learn(model, steps, callback=None, **kwargs):
    """Train, and return everything that a training leaves behind."""
    recorded = Recorded()
    model.set_logger(Logger(None, [recorded]))
    model.learn(steps, callback=callback, **kwargs)
    return result(model) | {"logged": recorded.dumps}


def result(model):
    """Return weights, optimizers' states, buffers, counters and positions of the random streams."""
    buffer = getattr(model, "rollout_buffer", None) or model.replay_buffer
    arrays = {name: own for name, own in vars(buffer).items() if isinstance(own, np.ndarray | int | bool)}
    return {
        "weights": dict(model.policy.state_dict()),
        "ent_coef": getattr(model, "log_ent_coef", None),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers_of(model).values()],
        "buffer": arrays,
        "last": [model._last_obs, model._last_episode_starts, model.num_timesteps, model._n_updates],
        "episodes": [(float(own["r"]), int(own["l"])) for own in model.ep_info_buffer],
        "successes": list(model.ep_success_buffer),
        "pending": dict(model.logger.name_to_value),
        "training": [module.training for module in model.policy.modules()],
        "random": [torch.get_rng_state(), list(np.random.get_state()), random.random()],
        "actions": model.action_space.np_random.bit_generator.state,
    }


def assert_same(first, second):
    """Compare two results bit by bit, and name what differs."""
    different = [name for name in first if not same(first[name], second[name])]
    assert different == [], f"{different}: {[(first[name], second[name]) for name in different]}"[:600]


def both(make, steps, expected=None, **kwargs):
    """Train a plain model and an accelerated one, and compare; return the report."""
    random.seed(0)
    plain = learn(make(), steps, **kwargs)
    random.seed(0)
    model = make()
    report = rltrack.accelerate(model)
    if expected is not None:
        assert set(report.accelerated) == set(expected), str(report)
    assert_same(plain, learn(model, steps, **kwargs))
    return report
