"""A feature extractor."""

from __future__ import annotations

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class Difference(BaseFeaturesExtractor):
    """Level, target and their difference, through one layer.

    Args:
        observation_space: Of the environment.
        features_dim: Width of the layer.
    """

    def __init__(self, observation_space: gym.Space, features_dim: int = 16) -> None:
        super().__init__(observation_space, features_dim)
        self.layer = nn.Linear(3, features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return features, shape ``(batch, features_dim)``."""
        difference = observations[:, :1] - observations[:, 1:2]
        return torch.tanh(self.layer(torch.cat([observations, difference], dim=1)))
