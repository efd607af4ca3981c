"""`SAC.train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import mse_loss

from rltrack.acceleration.continuous import ContinuousNetworks, polyak_update
from rltrack.acceleration.flat import FlatParameters
from rltrack.acceleration.optimizers import FlatOptimizer
from rltrack.acceleration.replay_data import sample
from rltrack.acceleration.update import mean


def updater(
    model: Any, networks: ContinuousNetworks, optimizers: dict[str, FlatOptimizer], target: FlatParameters
) -> Callable[..., None]:
    """Return an update of the model, without its beginning (`update.train_method`).

    SB3's update of the actor computes gradients of the critics too, and discards them. Here autograd is asked for the actor's.

    Args:
        model: A SAC.
        networks: Its networks.
        optimizers: Of ``actor``, ``critic`` and, where it is learned, ``ent_coef``.
        target: The parameters of the target critics.
    """
    actor_optimizer, critic_optimizer = optimizers["actor"], optimizers["critic"]
    ent_coef_optimizer = optimizers.get("ent_coef")

    def update(gradient_steps: int, batch_size: int = 64) -> None:
        ent_coef_losses, ent_coefs, actor_losses, critic_losses = [], [], [], []
        for gradient_step in range(gradient_steps):
            data = sample(model.replay_buffer, batch_size, model._vec_normalize_env)
            discounts = data.discounts if data.discounts is not None else model.gamma
            actions, log_prob = networks.actor.action_log_prob(data.observations)
            log_prob = log_prob.reshape(-1, 1)
            if ent_coef_optimizer is None:
                ent_coef = model.ent_coef_tensor
            else:
                ent_coef = torch.exp(model.log_ent_coef.detach())
                ent_coef_loss = -(model.log_ent_coef * (log_prob + model.target_entropy).detach()).mean()
                ent_coef_losses.append(ent_coef_loss.detach())
                ent_coef_optimizer.apply(torch.autograd.grad(ent_coef_loss, ent_coef_optimizer.flat.parameters))
            ent_coefs.append(ent_coef.reshape(()))

            with torch.no_grad():
                next_actions, next_log_prob = networks.actor.action_log_prob(data.next_observations)
                following = torch.cat(networks.critics_target(data.next_observations, next_actions), dim=1)
                following, _ = torch.min(following, dim=1, keepdim=True)
                following = following - ent_coef * next_log_prob.reshape(-1, 1)
                targets = data.rewards + (1 - data.dones) * discounts * following
            current = networks.critics(data.observations, data.actions)
            critic_loss: Any = 0.5 * sum(mse_loss(values, targets) for values in current)
            critic_losses.append(critic_loss.detach())
            critic_optimizer.apply(torch.autograd.grad(critic_loss, critic_optimizer.flat.parameters))

            values = torch.cat(networks.critics(data.observations, actions), dim=1)
            actor_loss = (ent_coef * log_prob - torch.min(values, dim=1, keepdim=True)[0]).mean()
            actor_losses.append(actor_loss.detach())
            actor_optimizer.apply(torch.autograd.grad(actor_loss, actor_optimizer.flat.parameters))
            if gradient_step % model.target_update_interval == 0:
                polyak_update(critic_optimizer.flat, target, model.tau)

        if torch.isnan(log_prob).any():
            networks.actor.validate(data.observations)  # raises as SB3's did in the forward with the NaN
        model._n_updates += gradient_steps
        record = model.logger.record
        record("train/n_updates", model._n_updates, exclude="tensorboard")
        record("train/ent_coef", mean(ent_coefs))
        record("train/actor_loss", mean(actor_losses))
        record("train/critic_loss", mean(critic_losses))
        if ent_coef_losses:
            record("train/ent_coef_loss", mean(ent_coef_losses))

    return update
