"""The state of an SB3 model at a boundary: taken as plain data, and put back in place.

Restoring never goes through SB3's ``load``, which rewinds every random stream to the start of the run. A model is built
fresh from its configuration and then overwritten in place, so that what is shared inside it stays shared.

The part ``environment`` is taken by `env_state.TrainingEnvs`; where it is missing, the environments begin a new episode and
nothing that belongs to the old one is put back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from rltrack.agents import sbx_state
from rltrack.agents.env_state import TrainingEnvs
from rltrack.agents.protocol import State
from rltrack.agents.random_state import capture_random, restore_random
from rltrack.agents.sb3_replay import ReplayState
from rltrack.agents.stored_values import is_number_or_text, to_numpy, to_torch
from rltrack.errors import ConfigurationError
from rltrack.journal.values import number

COUNTERS = (
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


def frozen(model: BaseAlgorithm) -> list[str]:
    """Return the names of the policy's parameters that take no gradient."""
    policy: Any = model.policy  # SBX's has no such parameters
    named = policy.named_parameters() if isinstance(policy, torch.nn.Module) else ()
    return [name for name, parameter in named if not parameter.requires_grad]


def freeze(model: BaseAlgorithm, names: Collection[str] | None) -> None:
    """Let these parameters of the policy, and no others, take no gradient; None leaves all as they are."""
    if names is not None:
        for name, parameter in model.policy.named_parameters():
            parameter.requires_grad_(name not in names)


def _capture_policy(model: BaseAlgorithm) -> dict[str, object]:
    if sbx_state.is_sbx(model):
        return sbx_state.capture(model)
    names, variables = model._get_torch_save_params()
    owners = {name: recursive_getattr(model, name) for name in names}
    policy = {name: to_numpy(o.state_dict()) for name, o in owners.items() if not isinstance(o, torch.optim.Optimizer)}
    return policy | {name: to_numpy(recursive_getattr(model, name)) for name in variables}


def _capture_optimizers(model: BaseAlgorithm) -> dict[str, object]:
    names = [] if sbx_state.is_sbx(model) else model._get_torch_save_params()[0]
    owners = {name: recursive_getattr(model, name) for name in names}
    return {name: to_numpy(o.state_dict()) for name, o in owners.items() if isinstance(o, torch.optim.Optimizer)}


def _capture_counters(model: BaseAlgorithm) -> dict[str, object]:
    counters = {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)}
    counters["episodes"] = [_numbers_and_texts(item) for item in model.ep_info_buffer or ()]
    counters["successes"] = [float(np.mean(item)) for item in model.ep_success_buffer or ()]
    return counters


def _numbers_and_texts(values: Mapping[str, object]) -> dict[str, object]:
    """What Monitor recorded of an episode, without what `info_keywords` added to it that is no number or text."""
    return {key: value for key, value in values.items() if is_number_or_text(value)}


def restore(
    model: BaseAlgorithm, state: State, envs: TrainingEnvs | None = None, replay: ReplayState | None = None
) -> None:
    """Overwrite the given parts of the model; random streams come last.

    Args:
        model: Built as the one that was captured.
        state: The parts to put back.
        envs: Its environments, for the part ``environment``.
        replay: Its replay buffer, for the part ``buffers``.

    Raises:
        ConfigurationError: If the state belongs to a model of another shape.
        NotCapturable: If the environments were built otherwise.
        ResumeMismatch: If the environments did not come to where they were.
    """
    if state.get("environment") is not None and envs is not None:
        envs.restore(state["environment"])
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
        for name in COUNTERS:
            if name in counters:
                setattr(model, name, counters[name])
    if state.get("environment") is not None and envs is not None:
        _restore_rollout(model, state["rollout"])
    if replay is not None and "replay" in state.get("buffers", {}):
        replay.restore(state["buffers"]["replay"])
    if "random" in state:
        restore_random(state["random"])


ROLLOUT = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def _capture_rollout(model: BaseAlgorithm) -> dict[str, object]:
    """What lies between two rollouts: last observations, recurrent states, noise, values waiting to be logged."""
    logger = model.logger
    rollout: State = {name: _with_strides(getattr(model, name, None)) for name in ROLLOUT}
    rollout["lstm"] = [to_numpy(list(part)) for part in getattr(model, "_last_lstm_states", None) or ()]
    rollout["noise"] = [np.array(noise.noise_prev) for noise in _noises(model) if hasattr(noise, "noise_prev")]
    rollout["pending"] = _pending(logger)
    rollout["old_count"] = getattr(model, "old_count", None)  # ARS with normalisation
    return rollout


_PENDING = ("name_to_value", "name_to_count", "name_to_excluded")


def _pending(logger: Any) -> dict[str, dict[str, Any]]:
    """What waits in a logger and is recorded when it is written: numbers, tensors of one element among them, and texts."""
    pending = {name: dict(getattr(logger, name, {})) for name in _PENDING}
    values = pending["name_to_value"]
    kept = {key: value if is_number_or_text(value) else number(value) for key, value in values.items()}
    pending["name_to_value"] = {key: value for key, value in kept.items() if value is not None}
    return pending


def _restore_rollout(model: Any, rollout: State) -> None:
    for name in ROLLOUT:
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


def _noises(model: object) -> list[Any]:
    noise = getattr(model, "action_noise", None)
    return list(getattr(noise, "noises", [noise] if noise is not None else []))


def _on_device(model: BaseAlgorithm, value: object) -> torch.Tensor:
    return torch.from_numpy(np.array(value)).to(model.device)


def _with_strides(value: object) -> State | None:
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


def _restore_tensors(model: BaseAlgorithm, saved: dict[str, object]) -> None:
    for name, value in saved.items():
        owner = recursive_getattr(model, name)
        try:
            if isinstance(owner, torch.Tensor):
                with torch.no_grad():
                    owner.copy_(torch.from_numpy(np.array(value)))
            else:
                owner.load_state_dict(to_torch(value))
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"The saved '{name}' does not fit this {type(model).__name__}: {' '.join(str(error).split())}. "
                "Build the agent with the hyperparameters with which it was saved."
            ) from None


def _statistics(rms: RunningMeanStd | dict[str, RunningMeanStd]) -> State:
    if isinstance(rms, dict):
        return {key: _statistics(item) for key, item in rms.items()}
    return {"mean": np.array(rms.mean), "var": np.array(rms.var), "count": float(rms.count)}


def _capture_normalization(normalize: VecNormalize | None) -> dict[str, object] | None:
    if normalize is None:
        return None
    return {
        "observations": _statistics(normalize.obs_rms) if normalize.norm_obs else None,
        "returns": _statistics(normalize.ret_rms),
        "running_returns": np.array(normalize.returns),
    }


def _overwrite_statistics(rms: RunningMeanStd | dict[str, RunningMeanStd], saved: State) -> None:
    if isinstance(rms, dict):
        for key, item in rms.items():
            _overwrite_statistics(item, saved[key])
        return
    rms.mean, rms.var, rms.count = np.array(saved["mean"]), np.array(saved["var"]), saved["count"]


def _restore_normalization(normalize: VecNormalize, saved: State) -> None:
    if saved["observations"] is not None and normalize.norm_obs:
        _overwrite_statistics(normalize.obs_rms, saved["observations"])
    _overwrite_statistics(normalize.ret_rms, saved["returns"])
    if np.shape(saved["running_returns"]) == np.shape(normalize.returns):
        normalize.returns = np.array(saved["running_returns"])


def start_episodes(model: Any, observations: VecEnvObs) -> None:
    """Let every environment of a model begin an episode with these observations."""
    model._last_obs = observations
    model._last_episode_starts = np.ones((model.n_envs,), dtype=bool)
    normalize = model._vec_normalize_env
    if normalize is not None:
        model._last_original_obs = normalize.get_original_obs()
    if model.__dict__.get("_last_lstm_states") is not None:
        kind = type(model._last_lstm_states)
        model._last_lstm_states = kind(
            *(tuple(torch.zeros_like(one) for one in part) for part in model._last_lstm_states)
        )
    noise = getattr(model, "action_noise", None)
    if noise is not None:
        noise.reset()


_PARTS: dict[str, Callable[[BaseAlgorithm], object]] = {
    "policy": _capture_policy,
    "optimizer": _capture_optimizers,
    "normalization": lambda model: _capture_normalization(unwrap_vec_normalize(model.env) if model.env else None),
    "counters": _capture_counters,
    "random": lambda model: capture_random(),
    "rollout": _capture_rollout,
}
