"""Trainings that fail in one way each, some time after they began."""

from __future__ import annotations

import multiprocessing
import os
import signal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import register
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from rltrack.agents import IterationStats

FAILS_AT = 45
"""Step of an environment at which it fails, counted over its episodes."""


class Steady(gym.Env):
    """Random observations; an episode has 10 steps; `trouble` is called at the step that fails."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def observe(self):
        return self.np_random.uniform(0.1, 1, 3).astype(np.float32)

    def step(self, action):
        self.steps += 1
        self.t += 1
        result = self.observe(), 1.0, self.t >= 10, False, {}
        return self.trouble(action, result) if self.steps >= FAILS_AT else result

    def trouble(self, action, result):
        return result


class NanReward(Steady):
    def trouble(self, action, result):
        return (result[0], float("nan"), *result[2:])


class InfiniteObservation(Steady):
    def trouble(self, action, result):
        result[0][1] = np.inf
        return result


class Raises(Steady):
    """Raises now and then, as its random stream says."""

    def step(self, action):
        result = super().step(action)
        if self.np_random.uniform() < 0.05:
            raise RuntimeError("the gripper is stuck")
        return result


class Refuses(Steady):
    """Takes actions up to 1; `Doubling` gives it more."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def trouble(self, action, result):
        if abs(action[0]) > 1:
            raise AssertionError(f"{action} is too much")
        return result


class Dies(Steady):
    def trouble(self, action, result):
        if multiprocessing.parent_process() is not None:  # not the process that trains
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class Zeros(Steady):
    def trouble(self, action, result):
        return (np.zeros(3, np.float32), *result[1:])


class Large(Steady):
    def trouble(self, action, result):
        return (np.full(3, 1e5, np.float32), *result[1:])


class Doubling(gym.ActionWrapper):
    def action(self, action):
        return action * 2 + np.sign(action)


class Share(gym.RewardWrapper):
    """Divides by the steps that are left until one fails."""

    def reward(self, reward):
        return float(np.float64(reward) / max(FAILS_AT - self.unwrapped.steps, 0))


class Log(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 3)

    def forward(self, observations):
        return torch.log(observations)


class Half(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 3)

    def forward(self, observations):
        return observations.half().float()


class BreakableHead(torch.nn.Linear):
    """Gives NaN once an observation was large; other parts of the policy do not see it."""

    def forward(self, latent):
        values = super().forward(latent)
        return values / 0 * 0 if float(latent.detach().abs().max()) > 0.9 else values


class Policy(ActorCriticPolicy):
    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.value_net = BreakableHead(self.mlp_extractor.latent_dim_vf, 1)


class Root(torch.nn.Linear):
    """Gives zero once it is broken; the gradient of the root is infinite there."""

    broken = False

    def forward(self, observations):
        values = super().forward(observations)
        return torch.sqrt(values * 0) if self.broken else values**2


class OwnAgent:
    """Not of Stable-Baselines3. From its third iteration of 10 steps on, the gradient of its loss is NaN."""

    def __init__(self):
        self.net = Root(3, 1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.iterations = 0

    def bind(self, env, seed):
        self.env = env
        self.seen, _ = env.reset(seed=seed)

    def advance(self, observer):
        self.iterations += 1
        for _ in range(10):
            self.seen, _, terminated, _, _ = self.env.step(1)
            observer.on_step(1, None)
            if terminated:
                self.seen, _ = self.env.reset()
        self.net.broken = self.iterations >= 3
        loss = self.net(torch.from_numpy(self.seen)).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return IterationStats(10, [], {"train/loss": loss.item()})

    def predict(self, observation, *, state=None, episode_start=None, deterministic=True, **inputs):
        return np.ones(len(observation), np.int64), None

    def set_schedule(self, remaining):
        pass


for _kind in (NanReward, InfiniteObservation, Raises, Refuses, Dies, Zeros, Large, Steady):
    register(f"Failing{_kind.__name__}-v0", entry_point=_kind)
