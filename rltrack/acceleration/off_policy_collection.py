"""`OffPolicyAlgorithm.collect_rollouts`, with `_sample_action` and `_store_transition`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv


def collector(model: Any, is_watched: Callable[[], bool]) -> Callable[..., RolloutReturn]:
    """Return what replaces the model's `collect_rollouts`.

    Args:
        model: A DQN, SAC, TD3 or DDPG.
        is_watched: Returns whether hooks were registered on its policy.
    """

    def collect_rollouts(
        env: Any,
        callback: Any,
        train_freq: Any,
        replay_buffer: Any,
        action_noise: Any = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        if is_watched():
            return type(model).collect_rollouts(  # type: ignore[no-any-return]
                model, env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
        model.policy.set_training_mode(False)
        num_collected_steps = num_collected_episodes = 0
        assert isinstance(env, VecEnv), "You must pass a VecEnv"
        assert train_freq.frequency > 0, "Should at least collect one step or episode."
        n_envs = env.num_envs
        if n_envs > 1:
            assert train_freq.unit == TrainFrequencyUnit.STEP, "You must use only one env when doing episodic training."
        callback.on_rollout_start()
        seen: dict[str, Any] = {
            "self": model, "env": env, "callback": callback, "train_freq": train_freq, "replay_buffer": replay_buffer,
            "action_noise": action_noise, "learning_starts": learning_starts, "log_interval": log_interval,
            "continue_training": True,
        }  # fmt: skip
        while should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes):
            actions, buffer_actions = model._sample_action(learning_starts, action_noise, n_envs)
            new_obs, rewards, dones, infos = env.step(actions)
            model.num_timesteps += n_envs
            num_collected_steps += 1

            seen.update(
                num_collected_steps=num_collected_steps, num_collected_episodes=num_collected_episodes, actions=actions,
                buffer_actions=buffer_actions, new_obs=new_obs, rewards=rewards, dones=dones, infos=infos,
            )  # fmt: skip
            callback.update_locals(seen)
            if not callback.on_step():
                return RolloutReturn(num_collected_steps * n_envs, num_collected_episodes, continue_training=False)

            model._update_info_buffer(infos, dones)
            _store(model, replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            model._on_step()
            for idx in range(n_envs):
                if dones[idx]:
                    num_collected_episodes += 1
                    model._episode_num += 1
                    if action_noise is not None:
                        kwargs = {"indices": [idx]} if n_envs > 1 else {}
                        action_noise.reset(**kwargs)
                        seen["kwargs"] = kwargs
                    if log_interval is not None and model._episode_num % log_interval == 0:
                        model.dump_logs()
            seen.update(idx=n_envs - 1, done=dones[-1])
        callback.on_rollout_end()
        return RolloutReturn(num_collected_steps * n_envs, num_collected_episodes, True)

    return collect_rollouts


def _store(
    model: Any, buffer: Any, actions: np.ndarray, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[Any]
) -> None:
    """Follow `_store_transition` and `ReplayBuffer.add`."""
    if (
        type(buffer) is not ReplayBuffer
        or model._vec_normalize_env is not None
        or buffer.optimize_memory_usage
        or isinstance(buffer.observation_space, spaces.Discrete)
        or "add" in vars(buffer)
    ):
        model._store_transition(buffer, actions, new_obs, rewards, dones, infos)
        return
    model._last_original_obs = model._last_obs
    position = buffer.pos
    buffer.observations[position] = model._last_obs
    following = buffer.next_observations[position]
    following[...] = new_obs
    for idx in range(len(dones)):
        if dones[idx] and infos[idx].get("terminal_observation") is not None:
            following[idx] = infos[idx]["terminal_observation"]
    buffer.actions[position] = actions.reshape((buffer.n_envs, buffer.action_dim))
    buffer.rewards[position] = rewards
    buffer.dones[position] = dones
    if buffer.handle_timeout_termination:
        buffer.timeouts[position] = [info.get("TimeLimit.truncated", False) for info in infos]
    buffer.pos = position + 1
    if buffer.pos == buffer.buffer_size:
        buffer.full, buffer.pos = True, 0
    model._last_obs = new_obs
