"""`ReplayBuffer.sample` without two copies of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples


def sample(buffer: Any, batch_size: int, normalize: Any) -> Any:
    """Return what ``buffer.sample(batch_size, env=normalize)`` returns."""
    if (
        type(buffer) is not ReplayBuffer
        or normalize is not None
        or buffer.optimize_memory_usage
        or "sample" in vars(buffer)
    ):
        return buffer.sample(batch_size, env=normalize)
    upper = buffer.buffer_size if buffer.full else buffer.pos
    rows = np.random.randint(0, upper, size=batch_size)
    envs = np.random.randint(0, high=buffer.n_envs, size=(batch_size,))
    flat = rows * buffer.n_envs + envs
    indices = torch.from_numpy(flat)
    dones = (buffer.dones.ravel()[flat] * (1 - buffer.timeouts.ravel()[flat])).reshape(-1, 1)
    rewards = buffer.rewards.ravel()[flat].reshape(-1, 1)
    return ReplayBufferSamples(
        _rows(buffer.observations, indices),
        _rows(buffer.actions, indices),
        _rows(buffer.next_observations, indices),
        torch.from_numpy(dones),
        torch.from_numpy(rewards),
    )


def _rows(array: np.ndarray, indices: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array.reshape(-1, *array.shape[2:])).index_select(0, indices)
