"""Actors and critics of SAC, TD3 and DDPG."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3

from rltrack.acceleration.distributions import normal_log_prob
from rltrack.acceleration.flat import FlatParameters
from rltrack.acceleration.networks import NotRecognised, Perceptron, features_of
from rltrack.acceleration.patches import overridden
from rltrack.acceleration.watching import Watched


class Critics:
    """Several action-value functions.

    Args:
        critic: SB3's critic.

    Raises:
        NotRecognised: If it is not exactly SB3's.
    """

    def __init__(self, critic: Any) -> None:
        require(critic, ContinuousCritic, "critic")
        self.features = features_of(critic, critic.features_extractor)
        self.functions = [Perceptron(function) for function in critic.q_networks]

    def inputs(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return what each function takes, shape ``(n, n_features + action_dim)``."""
        return torch.cat([self.features(observations), actions], dim=1)

    def __call__(self, observations: torch.Tensor, actions: torch.Tensor) -> list[torch.Tensor]:
        """Return the values of each function, shape ``(n, 1)``."""
        inputs = self.inputs(observations, actions)
        return [function(inputs) for function in self.functions]


class SquashedActor:
    """SAC's actor: a Gaussian squashed by tanh.

    Args:
        actor: SB3's actor.

    Raises:
        NotRecognised: If it is not exactly SB3's, or explores by gSDE.
    """

    def __init__(self, actor: Any) -> None:
        require(actor, sac.Actor, "actor")
        if actor.use_sde or type(actor.action_dist) is not SquashedDiagGaussianDistribution:
            raise NotRecognised("the actor explores by gSDE")
        self.actor = actor
        self.features = features_of(actor, actor.features_extractor)
        self._body, self._mean, self._log_std = (
            Perceptron(actor.latent_pi),
            Perceptron(actor.mu),
            Perceptron(actor.log_std),
        )
        self._epsilon = actor.action_dist.epsilon

    def _normal(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent = self._body(self.features(observations))
        mean, log_std = self._mean(latent), torch.clamp(self._log_std(latent), sac.LOG_STD_MIN, sac.LOG_STD_MAX)
        return mean, torch.ones_like(mean) * log_std.exp()

    def action_log_prob(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw actions within -1 and 1, and return them with their log-probabilities."""
        mean, std = self._normal(observations)
        drawn = mean + torch.empty_like(mean).normal_() * std
        actions = torch.tanh(drawn)
        log_prob = normal_log_prob(mean, std, drawn).sum(dim=1)
        log_prob -= torch.sum(torch.log(1 - actions**2 + self._epsilon), dim=1)
        return actions, log_prob

    def act(self, observations: torch.Tensor, deterministic: bool) -> torch.Tensor:
        """Return actions within -1 and 1."""
        mean, std = self._normal(observations)
        if bool(torch.isnan(mean).any()):
            self.validate(observations)
        if deterministic:
            return torch.tanh(mean)
        return torch.tanh(mean + torch.empty_like(mean).normal_() * std)

    def validate(self, observations: torch.Tensor) -> None:
        """Raise SB3's ValueError if the actor gives NaN for these observations."""
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        self.actor.action_dist.proba_distribution(mean, log_std)


class DeterministicActor:
    """The actor of TD3 and DDPG.

    Args:
        actor: SB3's actor.

    Raises:
        NotRecognised: If it is not exactly SB3's.
    """

    def __init__(self, actor: Any) -> None:
        require(actor, td3.Actor, "actor")
        self.features = features_of(actor, actor.features_extractor)
        self._network = Perceptron(actor.mu)

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """Return actions within -1 and 1."""
        return self._network(self.features(observations))

    def act(self, observations: torch.Tensor, deterministic: bool) -> torch.Tensor:
        """Return actions within -1 and 1."""
        return self(observations)


class ContinuousNetworks(Watched):
    """All networks of a SAC, TD3 or DDPG.

    Args:
        policy: The policy.

    Raises:
        NotRecognised: If a part is not exactly SB3's.
    """

    actor: Any
    actor_target: Any

    def __init__(self, policy: Any) -> None:
        if type(policy) not in (sac.SACPolicy, td3.TD3Policy):
            raise NotRecognised(f"the policy is a {type(policy).__name__}")
        require(policy, type(policy), "policy")
        if type(policy) is sac.SACPolicy:
            self.actor = SquashedActor(policy.actor)
        else:
            self.actor, self.actor_target = DeterministicActor(policy.actor), DeterministicActor(policy.actor_target)
        self.critics, self.critics_target = Critics(policy.critic), Critics(policy.critic_target)
        super().__init__(policy)


def require(part: Any, kind: type, name: str) -> None:
    """Refuse a part that is not exactly of a class, or has methods of its own."""
    if type(part) is not kind:
        raise NotRecognised(f"the {name} is a {type(part).__name__}")
    if overridden(part):
        raise NotRecognised(f"the {name} has its own {', '.join(overridden(part))}")


def polyak_update(parameters: FlatParameters, target: FlatParameters, tau: float) -> None:
    """Follow SB3's `polyak_update`, over all parameters at once."""
    parameters.bind()
    target.bind()
    with torch.no_grad():
        target.values.mul_(1 - tau)
        torch.add(target.values, parameters.values, alpha=tau, out=target.values)
