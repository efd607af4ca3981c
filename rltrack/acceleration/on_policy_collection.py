"""`OnPolicyAlgorithm.collect_rollouts`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from rltrack.acceleration.actor_critic import ActorCritic


def collector(model: Any, networks: ActorCritic) -> Callable[..., bool]:
    """Return what replaces the model's `collect_rollouts`."""
    is_discrete = isinstance(model.action_space, spaces.Discrete)

    def collect_rollouts(env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        if type(rollout_buffer) is not RolloutBuffer or networks.is_watched():
            return type(model).collect_rollouts(model, env, callback, rollout_buffer, n_rollout_steps)  # type: ignore[no-any-return]
        policy = model.policy
        policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        n_envs, n_steps = env.num_envs, 0
        seen: dict[str, Any] = {
            "self": model,
            "env": env,
            "callback": callback,
            "rollout_buffer": rollout_buffer,
            "n_rollout_steps": n_rollout_steps,
        }
        while n_steps < n_rollout_steps:
            with torch.no_grad():
                obs_tensor = torch.as_tensor(model._last_obs)
                action_tensor, values, log_probs = networks.forward(obs_tensor)
            actions = action_tensor.numpy()
            if math.isnan(log_probs.numpy().sum()):
                networks.validate(obs_tensor)
            clipped_actions = networks.to_environment(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            model.num_timesteps += n_envs

            seen.update(
                n_steps=n_steps, obs_tensor=obs_tensor, actions=actions, values=values, log_probs=log_probs,
                clipped_actions=clipped_actions, new_obs=new_obs, rewards=rewards, dones=dones, infos=infos,
            )  # fmt: skip
            callback.update_locals(seen)
            if not callback.on_step():
                return False

            model._update_info_buffer(infos, dones)
            n_steps += 1
            if is_discrete:
                actions = actions.reshape(-1, 1)
            for idx in range(n_envs):
                if dones[idx]:
                    _bootstrap(model, networks, infos[idx], idx, rewards, seen)
            seen["idx"], seen["done"] = idx, dones[idx]
            _store(rollout_buffer, model, actions, rewards, values, log_probs)
            model._last_obs = new_obs
            model._last_episode_starts = dones

        with torch.no_grad():
            values = networks.predict_values(torch.as_tensor(new_obs))
        compute_returns_and_advantage(rollout_buffer, values, dones)
        seen.update(n_steps=n_steps, actions=actions, values=values)
        callback.update_locals(seen)
        callback.on_rollout_end()
        return True

    return collect_rollouts


def _bootstrap(
    model: Any, networks: ActorCritic, info: dict[str, Any], idx: int, rewards: np.ndarray, seen: dict[str, Any]
) -> None:
    """Add the value of the last observation where an episode was cut by a time limit."""
    if info.get("terminal_observation") is None or not info.get("TimeLimit.truncated", False):
        return
    terminal_obs = model.policy.obs_to_tensor(info["terminal_observation"])[0]
    with torch.no_grad():
        terminal_value = networks.predict_values(terminal_obs)[0]
    rewards[idx] += model.gamma * terminal_value
    seen.update(terminal_obs=terminal_obs, terminal_value=terminal_value)


def _store(
    buffer: RolloutBuffer, model: Any, actions: np.ndarray, rewards: np.ndarray, values: Any, log_probs: Any
) -> None:
    """Follow `RolloutBuffer.add`."""
    position, observations = buffer.pos, model._last_obs
    if isinstance(buffer.observation_space, spaces.Discrete):
        observations = observations.reshape((buffer.n_envs, *buffer.obs_shape))
    buffer.observations[position] = observations
    buffer.actions[position] = actions.reshape((buffer.n_envs, buffer.action_dim))
    buffer.rewards[position] = rewards
    buffer.episode_starts[position] = model._last_episode_starts
    buffer.values[position] = values.numpy().ravel()
    buffer.log_probs[position] = log_probs.numpy()
    buffer.pos = position + 1
    if buffer.pos == buffer.buffer_size:
        buffer.full = True


def compute_returns_and_advantage(buffer: RolloutBuffer, last_values: torch.Tensor, dones: np.ndarray) -> None:
    """Follow `RolloutBuffer.compute_returns_and_advantage`: all that does not depend on the next step is computed at once."""
    last = last_values.numpy().ravel()
    going_on = np.empty_like(buffer.episode_starts)
    going_on[:-1] = 1.0 - buffer.episode_starts[1:]
    going_on[-1] = 1.0 - dones.astype(np.float32)
    following = np.empty_like(buffer.values)
    following[:-1] = buffer.values[1:]
    following[-1] = last
    deltas = buffer.rewards + buffer.gamma * following * going_on - buffer.values
    factors = buffer.gamma * buffer.gae_lambda * going_on
    advantages = buffer.advantages
    advantages[-1] = deltas[-1] + factors[-1] * 0
    for step in range(buffer.buffer_size - 2, -1, -1):
        np.multiply(factors[step], advantages[step + 1], out=advantages[step])
        np.add(deltas[step], advantages[step], out=advantages[step])
    buffer.returns = advantages + buffer.values
