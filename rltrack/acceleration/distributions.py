"""Action distributions, with the operations of SB3 and `torch.distributions` in their order and nothing around them.

Each has ``sample(raw)`` for an action and its log-probability, ``log_prob(raw, actions)`` with what its ``entropy`` needs, and
``mode(raw)``; ``raw`` is the output of the action network.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from stable_baselines3.common import distributions as sb3
from torch.nn.functional import binary_cross_entropy_with_logits, softmax

from rltrack.acceleration.networks import NotRecognised

Pair = tuple[torch.Tensor, Any]
_LOG_SQRT_2_PI = math.log(math.sqrt(2 * math.pi))
_ENTROPY = 0.5 + 0.5 * math.log(2 * math.pi)


class Categorical:
    """One of several actions; ``raw`` are logits, shape ``(n, n_actions)``."""

    def sample(self, raw: torch.Tensor) -> Pair:
        """Draw actions, shape ``(n,)``, and return them with their log-probabilities."""
        logits = raw - raw.logsumexp(dim=-1, keepdim=True)
        probabilities = softmax(logits, dim=-1)
        # as torch.multinomial draws one sample, without its tests of the probabilities: NaN in them is NaN in the result
        waits = torch.empty_like(probabilities).exponential_(1)
        actions = probabilities.div_(waits).argmax(dim=-1, keepdim=True)
        return actions.reshape(-1), logits.gather(-1, actions).squeeze(-1)

    def log_prob(self, raw: torch.Tensor, actions: torch.Tensor) -> Pair:
        """Return the actions' log-probabilities, and the normalised logits."""
        logits = raw - raw.logsumexp(dim=-1, keepdim=True)
        return logits.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1), logits

    def entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the entropy of each distribution."""
        return -(torch.clamp(logits, min=torch.finfo(logits.dtype).min) * softmax(logits, dim=-1)).sum(-1)

    def mode(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the likeliest actions."""
        return torch.argmax(softmax(raw - raw.logsumexp(dim=-1, keepdim=True), dim=-1), dim=1)


class MultiCategorical:
    """Several choices at a time.

    Args:
        sizes: Number of actions of each choice.
    """

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = [int(size) for size in sizes]
        self._one = Categorical()

    def sample(self, raw: torch.Tensor) -> Pair:
        """Draw actions, shape ``(n, n_choices)``, and return them with their log-probabilities."""
        drawn = [self._one.sample(part) for part in torch.split(raw, self._sizes, dim=1)]
        log_prob = torch.stack([own for _, own in drawn], dim=1).sum(dim=1)
        return torch.stack([actions for actions, _ in drawn], dim=1), log_prob

    def log_prob(self, raw: torch.Tensor, actions: torch.Tensor) -> Pair:
        """Return the actions' log-probabilities, and the normalised logits of each choice."""
        parts = zip(torch.split(raw, self._sizes, dim=1), torch.unbind(actions, dim=1), strict=True)
        found = [self._one.log_prob(part, chosen) for part, chosen in parts]
        return torch.stack([own for own, _ in found], dim=1).sum(dim=1), [logits for _, logits in found]

    def entropy(self, logits: list[torch.Tensor]) -> torch.Tensor:
        """Return the entropy of each distribution."""
        return torch.stack([self._one.entropy(part) for part in logits], dim=1).sum(dim=1)

    def mode(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the likeliest actions."""
        return torch.stack([self._one.mode(part) for part in torch.split(raw, self._sizes, dim=1)], dim=1)


class Bernoulli:
    """Several independent switches; ``raw`` are logits, shape ``(n, n_switches)``."""

    def sample(self, raw: torch.Tensor) -> Pair:
        """Draw actions, shape ``(n, n_switches)``, and return them with their log-probabilities."""
        with torch.no_grad():
            actions = torch.bernoulli(torch.sigmoid(raw))
        return actions, self.log_prob(raw, actions)[0]

    def log_prob(self, raw: torch.Tensor, actions: torch.Tensor) -> Pair:
        """Return the actions' log-probabilities, and the logits."""
        return (-binary_cross_entropy_with_logits(raw, actions, reduction="none")).sum(dim=1), raw

    def entropy(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the entropy of each distribution."""
        return binary_cross_entropy_with_logits(raw, torch.sigmoid(raw), reduction="none").sum(dim=1)

    def mode(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the likeliest actions."""
        return torch.round(torch.sigmoid(raw))


class DiagonalGaussian:
    """Independent normal distributions around ``raw``, shape ``(n, action_dim)``.

    Args:
        parameters: The policy's own parameters, with ``log_std``.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters

    def _std(self, raw: torch.Tensor) -> torch.Tensor:
        log_std: torch.Tensor = self._parameters["log_std"]
        return torch.ones_like(raw) * log_std.exp()

    def sample(self, raw: torch.Tensor) -> Pair:
        """Draw actions, shape ``(n, action_dim)``, and return them with their log-probabilities."""
        std = self._std(raw)
        actions = raw + torch.empty_like(raw).normal_() * std
        return actions, normal_log_prob(raw, std, actions).sum(dim=1)

    def log_prob(self, raw: torch.Tensor, actions: torch.Tensor) -> Pair:
        """Return the actions' log-probabilities, and the standard deviations."""
        std = self._std(raw)
        return normal_log_prob(raw, std, actions).sum(dim=1), std

    def entropy(self, std: torch.Tensor) -> torch.Tensor:
        """Return the entropy of each distribution."""
        return (_ENTROPY + torch.log(std)).sum(dim=1)

    def mode(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the means."""
        return raw


def normal_log_prob(mean: torch.Tensor, std: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the log-density of each value, as `torch.distributions.Normal` computes it."""
    variance = std.square()
    return -(values - mean).square() / (2 * variance) - std.log() - _LOG_SQRT_2_PI


def distribution_of(policy: Any) -> Any:
    """Return the distribution that an actor-critic policy draws from.

    Raises:
        NotRecognised: If it is of another kind.
    """
    own = policy.action_dist
    if type(own) is sb3.CategoricalDistribution:
        return Categorical()
    if type(own) is sb3.MultiCategoricalDistribution:
        return MultiCategorical(own.action_dims)
    if type(own) is sb3.BernoulliDistribution:
        return Bernoulli()
    if type(own) is sb3.DiagGaussianDistribution:
        return DiagonalGaussian(policy._parameters)
    raise NotRecognised(f"actions are drawn from a {type(own).__name__}")
