"""`RolloutBuffer.get`: minibatches of a shuffled rollout, gathered at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

_NAMES = ("observations", "actions", "values", "log_probs", "advantages", "returns")


def minibatches(buffer: Any, batch_size: int | None) -> Iterator[RolloutBufferSamples]:
    """Yield what `buffer.get(batch_size)` yields.

    A minibatch of observations begins at a multiple of 64 bytes, as newly made tensors do: MKL's results depend on it.
    """
    if type(buffer) is not RolloutBuffer or "get" in vars(buffer):
        yield from buffer.get(batch_size)
        return
    assert buffer.full, ""
    total = buffer.buffer_size * buffer.n_envs
    indices = torch.from_numpy(np.random.permutation(total))
    if not buffer.generator_ready:
        for name in _NAMES:
            setattr(buffer, name, buffer.swap_and_flatten(getattr(buffer, name)))
        buffer.generator_ready = True
    arrays = {name: np.ascontiguousarray(getattr(buffer, name)) for name in _NAMES}
    arrays["actions"] = arrays["actions"].astype(np.float32, copy=False)
    observations, actions, *rest = (torch.from_numpy(array)[indices] for array in arrays.values())
    rest = [column.flatten() for column in rest]
    size = batch_size or total
    for start in range(0, total, size):
        own = observations[start : start + size]
        if own.data_ptr() % 64:
            own = own.clone()
        yield RolloutBufferSamples(
            own, actions[start : start + size], *(column[start : start + size] for column in rest)
        )
