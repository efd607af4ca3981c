"""`TD3.train`, which is DDPG's too."""

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
    model: Any,
    networks: ContinuousNetworks,
    optimizers: dict[str, FlatOptimizer],
    target: FlatParameters,
    actor_target: FlatParameters,
) -> Callable[..., None]:
    """Return an update of the model, without its beginning (`update.train_method`).

    Args:
        model: A TD3 or DDPG.
        networks: Its networks.
        optimizers: Of ``actor`` and ``critic``.
        target: The parameters of the target critics.
        actor_target: The parameters of the target actor.
    """
    actor_optimizer, critic_optimizer = optimizers["actor"], optimizers["critic"]

    def update(gradient_steps: int, batch_size: int = 100) -> None:
        actor_losses, critic_losses = [], []
        for _ in range(gradient_steps):
            model._n_updates += 1
            data = sample(model.replay_buffer, batch_size, model._vec_normalize_env)
            discounts = data.discounts if data.discounts is not None else model.gamma
            with torch.no_grad():
                noise = data.actions.clone().data.normal_(0, model.target_policy_noise)
                noise = noise.clamp(-model.target_noise_clip, model.target_noise_clip)
                next_actions = (networks.actor_target(data.next_observations) + noise).clamp(-1, 1)
                following = torch.cat(networks.critics_target(data.next_observations, next_actions), dim=1)
                following, _ = torch.min(following, dim=1, keepdim=True)
                targets = data.rewards + (1 - data.dones) * discounts * following
            current = networks.critics(data.observations, data.actions)
            critic_loss: Any = sum(mse_loss(values, targets) for values in current)
            critic_losses.append(critic_loss.detach())
            critic_optimizer.apply(torch.autograd.grad(critic_loss, critic_optimizer.flat.parameters))

            if model._n_updates % model.policy_delay == 0:
                critics = networks.critics
                inputs = critics.inputs(data.observations, networks.actor(data.observations))
                actor_loss = -critics.functions[0](inputs).mean()
                actor_losses.append(actor_loss.detach())
                actor_optimizer.apply(torch.autograd.grad(actor_loss, actor_optimizer.flat.parameters))
                polyak_update(critic_optimizer.flat, target, model.tau)
                polyak_update(actor_optimizer.flat, actor_target, model.tau)
        record = model.logger.record
        record("train/n_updates", model._n_updates, exclude="tensorboard")
        if actor_losses:
            record("train/actor_loss", mean(actor_losses))
        record("train/critic_loss", mean(critic_losses))

    return update
