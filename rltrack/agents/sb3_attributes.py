"""Which Python attributes of an SB3 model and its callbacks are stored by what changed (`attribute_state`), and which elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.save_util import recursive_getattr

from rltrack.agents import sbx_state
from rltrack.agents.attribute_state import AttributeState
from rltrack.agents.sb3_replay import is_stored_by_rows
from rltrack.agents.sb3_state import COUNTERS, ROLLOUT

_OF_MODEL = (
    *COUNTERS, *ROLLOUT, "_last_lstm_states", "old_count", "ep_info_buffer", "ep_success_buffer", "env", "_vec_normalize_env",
    "_logger", "_custom_logger", "start_time", "_total_timesteps", "batch_norm_stats", "batch_norm_stats_target",
)  # fmt: skip
_OF_BUFFERS = (
    "pos", "full", "env", "infos", "ep_start", "ep_length", "_current_ep_start", "generator_ready", "seq_start_indices", "pad",
    "pad_and_flatten",
)  # fmt: skip
"""Stored with the rows of a replay buffer, or of no use after the update of a rollout buffer."""
OF_CALLBACKS = ("model", "locals", "globals", "parent", "callback", "callbacks")


def attributes_of_model(model: BaseAlgorithm) -> AttributeState:
    """Remember the attributes of a model, its policy, optimizers, schedules, action noise and buffers as they are now."""
    tensors = sbx_state.names_in(model) if sbx_state.is_sbx(model) else frozenset(model._get_torch_save_params()[1])

    def skip(holder: Any, name: str, value: Any) -> bool:
        if holder is model:
            return name in _OF_MODEL or name in tensors or _is_of_policy(model, value)
        if isinstance(holder, ActionNoise):
            return name == "noise_prev"
        return isinstance(holder, BaseBuffer) and _is_of_buffer(holder, name, value)

    return AttributeState(model, type(model).__name__, skip=skip, elsewhere=_parts(model))


def attributes_of_callback(callback: BaseCallback, model: BaseAlgorithm) -> AttributeState:
    """Remember the attributes of a callback as they are now; what it holds of the model is the model's."""

    def skip(holder: Any, name: str, value: Any) -> bool:
        return holder is callback and name in OF_CALLBACKS

    buffers = [getattr(model, name, None) for name in ("rollout_buffer", "replay_buffer", "action_noise")]
    parts = list(_parts(model))
    closed = [*parts, *(item for item in buffers if item is not None)]
    return AttributeState(
        callback, f"the callback {type(callback).__name__}", skip=skip, elsewhere=parts, closed=closed
    )


def _parts(model: BaseAlgorithm) -> Iterator[Any]:
    """Modules, tensors and optimizers of a model that are parts of a version by themselves."""
    if sbx_state.is_sbx(model):
        return
    names, variables = model._get_torch_save_params()
    for owner in (model.policy, *(recursive_getattr(model, name) for name in (*names, *variables))):
        yield owner
        if isinstance(owner, torch.nn.Module):
            yield from owner.modules()
            yield from owner.parameters()
            yield from owner.buffers()


def _is_of_policy(model: BaseAlgorithm, value: Any) -> bool:
    """Whether it is a tensor in the memory of the policy's parameters, as ARS's ``weights``."""
    policy: Any = model.policy
    if not isinstance(value, torch.Tensor) or not isinstance(policy, torch.nn.Module):
        return False
    memory = value.untyped_storage().data_ptr()
    return any(parameter.untyped_storage().data_ptr() == memory for parameter in policy.parameters())


def _is_of_buffer(buffer: BaseBuffer, name: str, value: Any) -> bool:
    if isinstance(buffer, ReplayBuffer) and not is_stored_by_rows(buffer):
        return True  # pickled whole
    arrays = list(value.values()) if isinstance(value, dict) else [value]
    rows = (buffer.buffer_size, buffer.buffer_size * buffer.n_envs)
    return name in _OF_BUFFERS or any(
        isinstance(item, np.ndarray) and len(item.shape) > 0 and len(item) in rows for item in arrays
    )
