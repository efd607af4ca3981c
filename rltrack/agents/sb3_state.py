"""The state of an SB3 model at a boundary: taken as plain data, and put back in place.

Restoring never goes through SB3's ``load``, which rewinds every random stream to the start of the run. A model is built
fresh from its configuration and then overwritten in place, so that what is shared inside it stays shared.

Not taken here: the inside of the environments. After a restore they begin a new episode, which is why such a resume is
labelled as not exact.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from rltrack.agents import sbx_state
from rltrack.agents.protocol import State
from rltrack.agents.random_state import capture_random, restore_random
from rltrack.errors import ConfigurationError

_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_n_calls",
    "_episode_num",
    "exploration_rate",
    "_current_progress_remaining",
)


def capture(model: BaseAlgorithm) -> State:
    """Return the complete state of the model, without its environments."""
    jax = sbx_state.is_sbx(model)
    state_dicts, variables = ([], []) if jax else model._get_torch_save_params()
    policy: dict[str, Any] = sbx_state.capture(model) if jax else {}
    optimizer: dict[str, Any] = {}
    for name in state_dicts:
        owner = _resolve(model, name)
        (optimizer if isinstance(owner, torch.optim.Optimizer) else policy)[name] = _to_numpy(owner.state_dict())
    for name in variables:
        policy[name] = _to_numpy(_resolve(model, name))
    state: State = {
        "policy": policy,
        "optimizer": optimizer,
        "normalization": _capture_normalization(unwrap_vec_normalize(model.env)) if model.env is not None else None,
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "random": capture_random(),
        "buffers": {},
    }
    state["counters"]["episodes"] = [dict(item) for item in model.ep_info_buffer or ()]
    state["counters"]["successes"] = [float(item) for item in model.ep_success_buffer or ()]
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, ReplayBuffer):
        state["buffers"]["replay"] = _capture_replay(replay)
    return state


def restore(model: BaseAlgorithm, state: State) -> None:
    """Overwrite the given parts of the model; random streams come last.

    Raises:
        ConfigurationError: If the state belongs to a model of another shape.
    """
    if "policy" in state:
        (sbx_state.restore if sbx_state.is_sbx(model) else _restore_tensors)(model, state["policy"])
    if "optimizer" in state:
        _restore_tensors(model, state["optimizer"])
    normalize = unwrap_vec_normalize(model.env) if model.env is not None else None
    if state.get("normalization") is not None and normalize is not None:
        _restore_normalization(normalize, state["normalization"])
    if "counters" in state:
        counters = dict(state["counters"])
        window = model._stats_window_size
        model.ep_info_buffer = deque(counters.pop("episodes"), maxlen=window)
        model.ep_success_buffer = deque(counters.pop("successes"), maxlen=window)
        for name in _COUNTERS:
            if name in counters:
                setattr(model, name, counters[name])
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, ReplayBuffer) and "replay" in state.get("buffers", {}):
        _restore_replay(replay, state["buffers"]["replay"])
    if "random" in state:
        restore_random(state["random"])


def _resolve(model: BaseAlgorithm, dotted: str) -> Any:
    owner: Any = model
    for name in dotted.split("."):
        owner = getattr(owner, name)
    return owner


def _restore_tensors(model: BaseAlgorithm, saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        owner = _resolve(model, name)
        try:
            if isinstance(owner, torch.Tensor):
                with torch.no_grad():
                    owner.copy_(torch.from_numpy(np.array(value)))
            else:
                owner.load_state_dict(_to_torch(value))
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"The saved '{name}' does not fit this {type(model).__name__}: {' '.join(str(error).split())}. "
                "Build the agent with the hyperparameters with which it was saved."
            ) from None


def _to_numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, dict):
        return {key: _to_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_numpy(item) for item in value)
    return value


def _to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: _to_torch(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_torch(item) for item in value)
    return value


def _statistics(rms: Any) -> Any:
    if isinstance(rms, dict):
        return {key: _statistics(item) for key, item in rms.items()}
    return {"mean": np.array(rms.mean), "var": np.array(rms.var), "count": float(rms.count)}


def _capture_normalization(normalize: VecNormalize | None) -> dict[str, Any] | None:
    if normalize is None:
        return None
    return {
        "observations": _statistics(normalize.obs_rms) if normalize.norm_obs else None,
        "returns": _statistics(normalize.ret_rms),
        "running_returns": np.array(normalize.returns),
    }


def _overwrite_statistics(rms: Any, saved: Any) -> None:
    if isinstance(rms, dict):
        for key, item in rms.items():
            _overwrite_statistics(item, saved[key])
        return
    rms.mean, rms.var, rms.count = np.array(saved["mean"]), np.array(saved["var"]), saved["count"]


def _restore_normalization(normalize: VecNormalize, saved: dict[str, Any]) -> None:
    if saved["observations"] is not None and normalize.norm_obs:
        _overwrite_statistics(normalize.obs_rms, saved["observations"])
    _overwrite_statistics(normalize.ret_rms, saved["returns"])
    if np.shape(saved["running_returns"]) == np.shape(normalize.returns):
        normalize.returns = np.array(saved["running_returns"])


def _replay_arrays(replay: ReplayBuffer) -> dict[str, Any]:
    """Every array of the buffer whose first axis is the ring, by name; dictionaries of arrays included."""
    arrays: dict[str, Any] = {}
    for name, value in vars(replay).items():
        if (isinstance(value, np.ndarray) and value.shape[:1] == (replay.buffer_size,)) or (
            isinstance(value, dict) and value and all(isinstance(item, np.ndarray) for item in value.values())
        ):
            arrays[name] = value
    return arrays


def _capture_replay(replay: ReplayBuffer) -> dict[str, Any]:
    # one row more than `pos`: a memory-optimised buffer keeps the newest next observation there
    rows = replay.buffer_size if replay.full else min(replay.pos + 1, replay.buffer_size)
    saved: dict[str, Any] = {"pos": int(replay.pos), "full": bool(replay.full), "arrays": {}}
    for name, value in _replay_arrays(replay).items():
        saved["arrays"][name] = (
            {key: item[:rows].copy() for key, item in value.items()} if isinstance(value, dict) else value[:rows].copy()
        )
    current = getattr(replay, "_current_ep_start", None)  # HER's running episodes
    if current is not None:
        saved["current_episode_start"] = np.array(current)
    return saved


def _restore_replay(replay: ReplayBuffer, saved: dict[str, Any]) -> None:
    arrays = _replay_arrays(replay)
    for name, value in saved["arrays"].items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for key, rows in parts:
            target = arrays[name] if key is None else arrays[name][key]
            if len(rows) > len(target):
                raise ConfigurationError(
                    f"The saved replay buffer has {len(rows)} rows, this one {len(target)}. Build the agent with the "
                    "buffer_size with which it was saved."
                )
            target[: len(rows)] = rows
    replay.pos, replay.full = saved["pos"], saved["full"]
    if "current_episode_start" in saved:
        replay._current_ep_start = np.array(saved["current_episode_start"])  # type: ignore[attr-defined]
