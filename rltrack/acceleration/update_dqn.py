"""`DQN.train`, and what its policy predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch.nn.functional import smooth_l1_loss

from rltrack.acceleration.networks import NotRecognised, Perceptron, features_of
from rltrack.acceleration.optimizers import FlatOptimizer
from rltrack.acceleration.patches import overridden
from rltrack.acceleration.replay_data import sample
from rltrack.acceleration.update import mean
from rltrack.acceleration.watching import Watched


class QFunctions(Watched):
    """The action values of a DQN policy, and those of its target.

    Args:
        policy: The policy.

    Raises:
        NotRecognised: If it is not exactly SB3's.
    """

    def __init__(self, policy: Any) -> None:
        parts = (policy, policy.q_net, policy.q_net_target) if type(policy) is DQNPolicy else ()
        if not parts or any(type(part) is not QNetwork for part in parts[1:]):
            raise NotRecognised(f"the policy is a {type(policy).__name__}")
        for part in parts:
            if overridden(part):
                raise NotRecognised(f"the policy has its own {', '.join(overridden(part))}")
        super().__init__(policy)
        online, target = policy.q_net, policy.q_net_target
        self.features = features_of(policy, online.features_extractor, target.features_extractor)
        self._online, self._target = Perceptron(online.q_net), Perceptron(target.q_net)

    def online(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the value of each action, shape ``(n, n_actions)``."""
        return self._online(self.features(observations))

    def target(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the target's value of each action, shape ``(n, n_actions)``."""
        return self._target(self.features(observations))

    def act(self, observations: torch.Tensor, deterministic: bool) -> torch.Tensor:
        """Return the greedy actions, shape ``(n,)``."""
        return self.online(observations).argmax(dim=1).reshape(-1)


def updater(model: Any, networks: QFunctions, optimizer: FlatOptimizer) -> Callable[..., None]:
    """Return an update of the model, without its beginning (`update.train_method`)."""

    def update(gradient_steps: int, batch_size: int = 100) -> None:
        losses = []
        for _ in range(gradient_steps):
            data = sample(model.replay_buffer, batch_size, model._vec_normalize_env)
            discounts = data.discounts if data.discounts is not None else model.gamma
            with torch.no_grad():
                following = networks.target(data.next_observations).max(dim=1)[0].reshape(-1, 1)
                targets = data.rewards + (1 - data.dones) * discounts * following
            values = torch.gather(networks.online(data.observations), dim=1, index=data.actions.long())
            loss = smooth_l1_loss(values, targets)
            losses.append(loss.detach())
            optimizer.apply(torch.autograd.grad(loss, optimizer.flat.parameters), model.max_grad_norm)
        model._n_updates += gradient_steps
        model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
        model.logger.record("train/loss", mean(losses))

    return update
