"""Parts of policies that are not SB3's, environments with odd spaces, and what hostile descriptions would like to reach."""

from __future__ import annotations

from subprocess import Popen  # noqa: F401  # a description must not reach it, though this module is allowed

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

BOX = spaces.Box(-9, 9, (3,), np.float32)


class OwnExtractor(FlattenExtractor):
    """A features extractor of somebody's own."""

    class Inner(torch.nn.ReLU):
        """Cannot be found by its name."""


class ForgetfulExtractor(FlattenExtractor):
    """Keeps something that decides about features outside of its state_dict(), other each time it is built."""

    built = 0

    def __init__(self, observation_space):
        super().__init__(observation_space)
        ForgetfulExtractor.built += 1
        self.factor = float(10 * ForgetfulExtractor.built)

    def forward(self, observations):
        return super().forward(observations) * self.factor


class OddEnv(gym.Env):
    """Any space of observations; two actions, the better one depends on the observation."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space
        self.observation_space.seed(0)
        self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.count += 1
        return self.observation_space.sample(), float(action), False, self.count >= 20, {}


def image_and_vector():
    """A dictionary with an image and a vector, keys not sorted."""
    return spaces.Dict([
        ("vector", spaces.Box(-np.inf, np.inf, (3,), np.float32)),
        ("image", spaces.Box(0, 255, (36, 36, 3), np.uint8)),
    ])  # fmt: skip


class OwnWrapper(gym.Wrapper):
    """A wrapper of somebody's own."""
