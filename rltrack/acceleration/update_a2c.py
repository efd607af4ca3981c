"""`A2C.train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.utils import explained_variance
from torch.nn.functional import mse_loss

from rltrack.acceleration.actor_critic import ActorCritic
from rltrack.acceleration.optimizers import FlatOptimizer
from rltrack.acceleration.rollout_data import minibatches


def updater(model: Any, networks: ActorCritic, optimizer: FlatOptimizer) -> Callable[[], None]:
    """Return an update of the model, without its beginning (`update.train_method`)."""
    is_discrete = isinstance(model.action_space, spaces.Discrete)

    def update() -> None:
        policy = model.policy
        for data in minibatches(model.rollout_buffer, None):  # once: all data
            actions = data.actions.long().flatten() if is_discrete else data.actions
            values, log_prob, entropy = networks.evaluate(data.observations, actions)
            if torch.isnan(log_prob).any():
                policy.evaluate_actions(data.observations, actions)  # raises as SB3's does
            advantages = data.advantages
            if model.normalize_advantage:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            policy_loss = -(advantages * log_prob).mean()
            value_loss = mse_loss(data.returns, values.flatten())
            entropy_loss = -torch.mean(entropy)
            loss = policy_loss + model.ent_coef * entropy_loss + model.vf_coef * value_loss
            optimizer.apply(torch.autograd.grad(loss, optimizer.flat.parameters), model.max_grad_norm)

        buffer, record = model.rollout_buffer, model.logger.record
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        model._n_updates += 1
        record("train/n_updates", model._n_updates, exclude="tensorboard")
        record("train/explained_variance", explained)
        record("train/entropy_loss", entropy_loss.item())
        record("train/policy_loss", policy_loss.item())
        record("train/value_loss", value_loss.item())
        if hasattr(policy, "log_std"):
            record("train/std", torch.exp(policy.log_std).mean().item())

    return update
