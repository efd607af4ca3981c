"""The functions of SB3's `ActorCriticPolicy` with multi-layer perceptrons."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor

from rltrack.acceleration.distributions import distribution_of
from rltrack.acceleration.networks import NotRecognised, Perceptron, features_of
from rltrack.acceleration.patches import overridden
from rltrack.acceleration.watching import Watched


class ActorCritic(Watched):
    """Actions, values and log-probabilities of a policy.

    Args:
        policy: The policy of a PPO or A2C.

    Raises:
        NotRecognised: If it is not exactly SB3's.
    """

    def __init__(self, policy: Any) -> None:
        if type(policy) is not ActorCriticPolicy:
            raise NotRecognised(f"the policy is a {type(policy).__name__}")
        if overridden(policy):
            raise NotRecognised(f"the policy has its own {', '.join(overridden(policy))}")
        super().__init__(policy)
        self.features = features_of(policy, policy.pi_features_extractor, policy.vf_features_extractor)
        self.distribution = distribution_of(policy)
        if type(policy.mlp_extractor) is not MlpExtractor:
            raise NotRecognised(f"the networks are a {type(policy.mlp_extractor).__name__}")
        self.actor_body, self.actor_head = Perceptron(policy.mlp_extractor.policy_net), Perceptron(policy.action_net)
        self.critic_body, self.critic_head = Perceptron(policy.mlp_extractor.value_net), Perceptron(policy.value_net)
        shape = policy.action_space.shape or ()
        self._shape, self._reshapes = (-1, *shape), len(shape) != 1

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw actions, and return them with values, shape ``(n, 1)``, and log-probabilities, shape ``(n,)``.

        Raises:
            ValueError: As SB3 raises it, if the networks give NaN.
        """
        x = self.features(observations)
        raw, values = self.actor_head(self.actor_body(x)), self.critic_head(self.critic_body(x))
        try:
            actions, log_probs = self.distribution.sample(raw)
        except RuntimeError:
            self.check(raw)
            raise
        if self._reshapes:
            actions = actions.reshape(self._shape)
        return actions, values, log_probs

    def validate(self, observations: torch.Tensor) -> None:
        """Raise SB3's ValueError if the action network gives NaN for these observations."""
        with torch.no_grad():
            self.check(self.actor_head(self.actor_body(self.features(observations))))

    def check(self, raw: torch.Tensor) -> None:
        """Let SB3's own distribution validate the output of the action network, as it does at each call."""
        policy = self.policy
        std = (policy.log_std,) if hasattr(policy, "log_std") else ()
        policy.action_dist.proba_distribution(raw, *std)

    def evaluate(
        self, observations: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return values, log-probabilities and entropies, created in SB3's order: autograd adds gradients in the reverse."""
        x = self.features(observations)
        actor, critic = self.actor_body(x), self.critic_body(x)
        log_probs, rest = self.distribution.log_prob(self.actor_head(actor), actions)
        values = self.critic_head(critic)
        return values, log_probs, self.distribution.entropy(rest)

    def act(self, observations: torch.Tensor, deterministic: bool) -> torch.Tensor:
        """Return actions for `predict`."""
        raw = self.actor_head(self.actor_body(self.features(observations)))
        if bool(torch.isnan(raw).any()):
            self.check(raw)
        return self.distribution.mode(raw) if deterministic else self.distribution.sample(raw)[0]  # type: ignore[no-any-return]

    def predict_values(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the values, shape ``(n, 1)``."""
        return self.critic_head(self.critic_body(self.features(observations)))

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Return the actions as the environments take them."""
        space = self.policy.action_space
        return np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions
