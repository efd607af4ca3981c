"""Copies of a model, and environments of random numbers, on which the replacements are tried.

Nothing here calls what a user wrote: schedules are constants, callbacks do nothing, the training environments are not stepped.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

STEPS = 8
"""Steps that are collected in a check."""

_LEARNING_STARTS = 3


class Silent(BaseCallback):
    """A callback that does nothing."""

    def _on_step(self) -> bool:
        return True


class RandomEnv(VecEnv):
    """Environments of random observations, rewards and episodes, the same for equal seeds.

    Args:
        observation_space: Of one environment.
        action_space: Of one environment.
        n_envs: Number of environments.
        seed: Seed of everything.
    """

    def __init__(self, observation_space: Any, action_space: Any, n_envs: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._space = copy.deepcopy(observation_space)
        self._space.seed(seed)
        super().__init__(n_envs, observation_space, action_space)

    def observation(self) -> np.ndarray:
        """Return one observation."""
        space = self._space
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            return self._random.standard_normal(space.shape).astype(space.dtype)
        return np.asarray(space.sample())

    def reset(self) -> Any:
        """Return a first observation of each environment."""
        return np.stack([self.observation() for _ in range(self.num_envs)])

    def step_async(self, actions: np.ndarray) -> None:
        """Take any action."""

    def step_wait(self) -> Any:
        """Return random results; every other episode that ends was cut by a time limit."""
        n_envs = self.num_envs
        dones = self._random.random(n_envs) < 0.4
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(n_envs)]
        for info, done in zip(infos, dones, strict=True):
            if done:
                info["terminal_observation"] = self.observation()
                info["TimeLimit.truncated"] = bool(self._random.random() < 0.5)
        return self.reset(), self._random.standard_normal(n_envs).astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for each environment."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Take any value."""

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Return None for each environment."""
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Nothing is wrapped."""
        return [False] * self.num_envs


def twin(model: Any) -> Any:
    """Return a copy of a model that shares nothing that training changes, with small buffers and random environments."""
    own = copy.copy(model)
    own.policy, own.action_space = copy.deepcopy((model.policy, model.action_space))
    own._logger = Logger(None, [])
    own.verbose = 0
    own.ep_info_buffer, own.ep_success_buffer = deque(maxlen=100), deque(maxlen=100)
    own.num_timesteps, own._total_timesteps = 0, 1000
    rate = next(iter(_learning_rates(model)))
    own.lr_schedule = lambda _: rate
    random_env = RandomEnv(model.observation_space, own.action_space, model.n_envs)
    own.env = random_env
    own._last_obs = random_env.reset()
    own._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    (_prepare_off_policy if isinstance(model, OffPolicyAlgorithm) else _prepare_on_policy)(own, model)
    return own


def _learning_rates(model: Any) -> Any:
    for owner in (model.policy, getattr(model.policy, "actor", None)):
        optimizer = getattr(owner, "optimizer", None)
        if optimizer is not None:
            yield float(optimizer.param_groups[0]["lr"])
    yield 1e-3


def _prepare_on_policy(own: Any, model: Any) -> None:
    own.n_steps = STEPS
    own.rollout_buffer = _rollout_buffer(model, STEPS)
    if hasattr(model, "clip_range"):
        own.clip_range = lambda _: 0.2
        own.clip_range_vf = None if model.clip_range_vf is None else lambda _: 0.2
        own.n_epochs = 1


def _rollout_buffer(model: Any, n_steps: int) -> RolloutBuffer:
    return RolloutBuffer(
        n_steps, model.observation_space, model.action_space, model.device, model.gae_lambda, model.gamma, model.n_envs
    )


def _prepare_off_policy(own: Any, model: Any) -> None:
    own._create_aliases()
    own._last_original_obs = own._last_obs
    own.action_noise = copy.deepcopy(model.action_noise)
    own.learning_starts = _LEARNING_STARTS * model.n_envs
    if getattr(model, "log_ent_coef", None) is not None:
        own.log_ent_coef, own.ent_coef_optimizer = copy.deepcopy((model.log_ent_coef, model.ent_coef_optimizer))
    if hasattr(model, "exploration_schedule"):
        own.exploration_schedule, own.exploration_rate = (lambda _: 0.3), 0.3
    if model._vec_normalize_env is not None:
        own._vec_normalize_env = copy.deepcopy(model._vec_normalize_env)
        own._vec_normalize_env.set_venv(own.env)
        own.env = own._vec_normalize_env
        own._last_obs = own.env.reset()
        own._last_original_obs = own.env.get_original_obs()
    kwargs = (
        {"handle_timeout_termination": model.replay_buffer.handle_timeout_termination} if model.replay_buffer else {}
    )
    own.replay_buffer = ReplayBuffer(
        64 * model.n_envs, model.observation_space, model.action_space, model.device, model.n_envs, **kwargs
    )


def fill(model: Any) -> None:
    """Fill a twin's buffer with random numbers for an update."""
    random = np.random.default_rng(1)
    env = RandomEnv(model.observation_space, model.action_space, model.n_envs, seed=1)
    if isinstance(model, OffPolicyAlgorithm):
        buffer: Any = model.replay_buffer
        buffer.pos, buffer.full = 0, True
        arrays: tuple[str, ...] = ("rewards",)
    else:
        batch = getattr(model, "batch_size", None) or STEPS * model.n_envs
        buffer = model.rollout_buffer = _rollout_buffer(model, -(-(batch + min(batch, 5)) // model.n_envs))
        buffer.pos, buffer.full = buffer.buffer_size, True
        arrays = ("rewards", "values", "advantages", "returns")
        buffer.log_probs[:] = -random.random(buffer.log_probs.shape)
    for name in arrays:
        getattr(buffer, name)[:] = random.standard_normal(getattr(buffer, name).shape)
    pool = np.stack([env.reset() for _ in range(16)])
    for name in ("observations", "next_observations"):
        if hasattr(buffer, name):
            rows = getattr(buffer, name)
            rows[:] = pool[random.integers(0, 16, len(rows))].reshape(rows.shape)
    space = copy.deepcopy(model.action_space)
    space.seed(1)
    actions = np.stack([space.sample() for _ in range(16)])
    shape = buffer.actions.shape
    chosen = actions[random.integers(0, 16, shape[:2])].reshape(shape)
    if isinstance(model.action_space, spaces.Box):
        chosen = random.uniform(-1, 1, shape)
    buffer.actions[:] = chosen
    if hasattr(buffer, "dones"):
        buffer.dones[:] = random.random(buffer.dones.shape) < 0.2
        buffer.timeouts[:] = buffer.dones * (random.random(buffer.dones.shape) < 0.5)


def random_gradients(parameters: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Return gradients of the shapes of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
