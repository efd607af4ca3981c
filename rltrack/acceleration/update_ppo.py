"""`PPO.train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import explained_variance
from torch.nn.functional import mse_loss

from rltrack.acceleration.actor_critic import ActorCritic
from rltrack.acceleration.optimizers import FlatOptimizer
from rltrack.acceleration.rollout_data import minibatches
from rltrack.acceleration.update import mean


def updater(model: Any, networks: ActorCritic, optimizer: FlatOptimizer) -> Callable[[], None]:
    """Return an update of the model, without its beginning (`update.train_method`).

    The losses are read once at the end instead of at each minibatch.
    """
    is_discrete = isinstance(model.action_space, spaces.Discrete)

    def update() -> None:
        policy = model.policy
        clip_range = model.clip_range(model._current_progress_remaining)
        clip_range_vf = None
        if model.clip_range_vf is not None:
            clip_range_vf = model.clip_range_vf(model._current_progress_remaining)
        parameters = optimizer.flat.parameters
        policy_losses: list[Any] = []
        value_losses: list[Any] = []
        entropy_losses: list[Any] = []
        clipped: list[Any] = []
        continue_training = True
        for epoch in range(model.n_epochs):
            divergences: list[Any] = []
            for data in minibatches(model.rollout_buffer, model.batch_size):
                actions = data.actions.long().flatten() if is_discrete else data.actions
                values, log_prob, entropy = networks.evaluate(data.observations, actions)
                values = values.flatten()
                advantages = data.advantages
                if model.normalize_advantage and len(advantages) > 1:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                log_ratio = log_prob - data.old_log_prob
                ratio = torch.exp(log_ratio)
                loss_1 = advantages * ratio
                loss_2 = advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
                policy_loss = -torch.min(loss_1, loss_2).mean()
                if clip_range_vf is not None:
                    change = torch.clamp(values - data.old_values, -clip_range_vf, clip_range_vf)
                    values = data.old_values + change
                value_loss = mse_loss(data.returns, values)
                entropy_loss = -torch.mean(entropy)
                loss = policy_loss + model.ent_coef * entropy_loss + model.vf_coef * value_loss
                with torch.no_grad():
                    clipped.append(torch.mean((torch.abs(ratio - 1) > clip_range).float()))
                    divergences.append(torch.mean((ratio - 1) - log_ratio))
                policy_losses.append(policy_loss.detach())
                value_losses.append(value_loss.detach())
                entropy_losses.append(entropy_loss.detach())
                if model.target_kl is not None and divergences[-1].numpy() > 1.5 * model.target_kl:
                    continue_training = False
                    if model.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {divergences[-1].numpy():.2f}")
                    break
                optimizer.apply(torch.autograd.grad(loss, parameters), model.max_grad_norm)
            model._n_updates += 1
            if not continue_training:
                break
        approx_kl = np.mean(torch.stack(divergences).numpy())
        if np.isnan(approx_kl) and torch.isnan(log_prob).any():
            policy.evaluate_actions(data.observations, actions)  # raises as SB3's did in the minibatch with the NaN

        buffer, record = model.rollout_buffer, model.logger.record
        record("train/entropy_loss", mean(entropy_losses))
        record("train/policy_gradient_loss", mean(policy_losses))
        record("train/value_loss", mean(value_losses))
        record("train/approx_kl", approx_kl)
        record("train/clip_fraction", mean(clipped))
        record("train/loss", loss.item())
        record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(policy, "log_std"):
            record("train/std", torch.exp(policy.log_std).mean().item())
        record("train/n_updates", model._n_updates, exclude="tensorboard")
        record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            record("train/clip_range_vf", clip_range_vf)

    return update
