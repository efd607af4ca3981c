"""The state of an SB3 model at a boundary: taken as plain data, and put back in place.

Restoring never goes through SB3's ``load``, which rewinds every random stream to the start of the run. A model is built
fresh from its configuration and then overwritten in place, so that what is shared inside it stays shared.

The part ``environment`` is None where the environments cannot be taken (`env_state`). After a restore they then begin a new
episode, and the resume is labelled as not exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from rltrack.agents import env_state, sbx_state
from rltrack.agents.protocol import State
from rltrack.agents.random_state import capture_random, restore_random
from rltrack.errors import ConfigurationError, NotCapturable

_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_n_calls",
    "_episode_num",
    "exploration_rate",
    "_current_progress_remaining",
)


def capture(model: BaseAlgorithm, parts: Collection[str] | None = None) -> State:
    """Return the state of the model: the given parts, or all of them."""
    return {part: take(model) for part, take in _PARTS.items() if parts is None or part in parts}


def _capture_policy(model: BaseAlgorithm) -> dict[str, Any]:
    if sbx_state.is_sbx(model):
        return sbx_state.capture(model)
    names, variables = model._get_torch_save_params()
    owners = {name: _resolve(model, name) for name in names}
    policy = {name: _to_numpy(o.state_dict()) for name, o in owners.items() if not isinstance(o, torch.optim.Optimizer)}
    return policy | {name: _to_numpy(_resolve(model, name)) for name in variables}


def _capture_optimizers(model: BaseAlgorithm) -> dict[str, Any]:
    names = [] if sbx_state.is_sbx(model) else model._get_torch_save_params()[0]
    owners = {name: _resolve(model, name) for name in names}
    return {name: _to_numpy(o.state_dict()) for name, o in owners.items() if isinstance(o, torch.optim.Optimizer)}


def _capture_counters(model: BaseAlgorithm) -> dict[str, Any]:
    counters = {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)}
    counters["episodes"] = [dict(item) for item in model.ep_info_buffer or ()]
    counters["successes"] = [float(item) for item in model.ep_success_buffer or ()]
    return counters


def _capture_buffers(model: BaseAlgorithm) -> dict[str, Any]:
    replay = getattr(model, "replay_buffer", None)
    return {"replay": _capture_replay(replay)} if isinstance(replay, ReplayBuffer) else {}


def _capture_environment(model: BaseAlgorithm) -> dict[str, Any] | None:
    try:
        return None if model.env is None else env_state.capture(model.env)
    except NotCapturable:
        return None


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
    if state.get("environment") is not None and model.env is not None:
        env_state.restore(model.env, state["environment"])
        _restore_rollout(model, state["rollout"])
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, ReplayBuffer) and "replay" in state.get("buffers", {}):
        _restore_replay(replay, state["buffers"]["replay"])
    if "random" in state:
        restore_random(state["random"])


_ROLLOUT = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def _capture_rollout(model: BaseAlgorithm) -> dict[str, Any]:
    """What lies between two rollouts: last observations, recurrent states, noise, values waiting to be logged."""
    logger = model.logger
    rollout: dict[str, Any] = {name: _with_strides(getattr(model, name, None)) for name in _ROLLOUT}
    rollout["lstm"] = [_to_numpy(list(part)) for part in getattr(model, "_last_lstm_states", None) or ()]
    rollout["noise"] = [np.array(noise.noise_prev) for noise in _noises(model) if hasattr(noise, "noise_prev")]
    rollout["pending"] = {name: dict(getattr(logger, name, {})) for name in _PENDING}
    rollout["old_count"] = getattr(model, "old_count", None)  # ARS with normalisation
    return rollout


_PENDING = ("name_to_value", "name_to_count", "name_to_excluded")


def _restore_rollout(model: Any, rollout: dict[str, Any]) -> None:
    for name in _ROLLOUT:
        setattr(model, name, _from_strides(rollout[name]))
    if rollout["lstm"]:
        kind = type(model._last_lstm_states)
        model._last_lstm_states = kind(*(tuple(_on_device(model, item) for item in part) for part in rollout["lstm"]))
    stateful = [noise for noise in _noises(model) if hasattr(noise, "noise_prev")]
    for noise, previous in zip(stateful, rollout["noise"], strict=True):
        noise.noise_prev = np.array(previous)
    for name in _PENDING:
        pending = getattr(model.logger, name, None)
        if pending is not None:
            pending.clear()
            pending.update(rollout["pending"][name])
    if rollout["old_count"] is not None:
        model.old_count = rollout["old_count"]


def _noises(model: Any) -> list[Any]:
    noise = getattr(model, "action_noise", None)
    return list(getattr(noise, "noises", [noise] if noise is not None else []))


def _on_device(model: BaseAlgorithm, value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value)).to(model.device)


def _with_strides(value: Any) -> Any:
    """Keep how an array lies in memory: torch picks its kernels by that, and other kernels give other bits."""
    if isinstance(value, dict):
        return {"dict": {key: _with_strides(item) for key, item in value.items()}}
    if isinstance(value, np.ndarray):
        return {"array": np.array(value, order="C"), "strides": list(value.strides)}
    return None


def _from_strides(saved: Any) -> Any:
    if saved is None:
        return None
    if "dict" in saved:
        return {key: _from_strides(item) for key, item in saved["dict"].items()}
    array, strides = saved["array"], saved["strides"]
    order = sorted(range(array.ndim), key=lambda axis: -strides[axis])
    laid_out = np.array(array.transpose(order), order="C")  # the memory, axis by axis as it was
    back = laid_out.transpose(np.argsort(order)) if order else laid_out
    if all(own == was or size == 1 for own, was, size in zip(back.strides, strides, back.shape, strict=True)):
        return np.lib.stride_tricks.as_strided(back, back.shape, strides)
    return back


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


_PARTS: dict[str, Callable[[BaseAlgorithm], Any]] = {
    "policy": _capture_policy,
    "optimizer": _capture_optimizers,
    "normalization": lambda model: _capture_normalization(unwrap_vec_normalize(model.env) if model.env else None),
    "counters": _capture_counters,
    "random": lambda model: capture_random(),
    "rollout": _capture_rollout,
    "environment": _capture_environment,
    "buffers": _capture_buffers,
}
