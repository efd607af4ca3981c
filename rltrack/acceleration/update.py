"""What the updates of all algorithms have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from rltrack.acceleration.optimizers import FlatOptimizer
from rltrack.acceleration.watching import Watched


def train_method(
    model: Any, networks: Watched, optimizers: Mapping[str, FlatOptimizer], update: Callable[..., None]
) -> Callable[..., None]:
    """Return what replaces the model's `train`: `update` after SB3's beginning.

    Where hooks watch the policy, or parameters are frozen, it is SB3's own.
    """
    trained = [flat.optimizer for flat in optimizers.values()]
    parameters = [parameter for flat in optimizers.values() for parameter in flat.flat.parameters]

    def train(*arguments: Any, **keywords: Any) -> None:
        if networks.is_watched_in_updates() or not all(parameter.requires_grad for parameter in parameters):
            type(model).train(model, *arguments, **keywords)
            return
        model.policy.set_training_mode(True)
        model._update_learning_rate(trained)
        update(*arguments, **keywords)

    return train


def mean(values: list[torch.Tensor]) -> Any:
    """Return the mean of numbers, as of a list of what `item` returns."""
    if len(values) == 1:  # the usual case of off-policy algorithms
        return np.float64(values[0].item()) + 0.0  # the mean of -0.0 is 0.0
    return np.mean(torch.stack(values).tolist())
