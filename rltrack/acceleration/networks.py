"""Multi-layer perceptrons as the same calls to torch, without the modules around them.

The parameters are looked up at each call, so that replaced ones are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn.functional import linear

_ACTIVATIONS = (
    nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.SELU, nn.CELU, nn.Sigmoid, nn.LogSigmoid, nn.Softplus,
    nn.Softsign, nn.Mish, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink, nn.Identity,
)  # fmt: skip
"""Modules without state: calling their `forward` is all there is."""


class NotRecognised(Exception):
    """A part is not of a kind whose arithmetic is known; the message says which."""


class Perceptron:
    """A sequence of linear layers and activations.

    Args:
        modules: `nn.Sequential` or `nn.Linear`, one after the other.

    Raises:
        NotRecognised: If a layer is of another kind.
    """

    def __init__(self, *modules: Any) -> None:
        self.steps: list[tuple[dict[str, Any] | None, Callable[..., Any] | None]] = []
        for module in modules:
            for layer in module if type(module) is nn.Sequential else (module,):
                if type(layer) is nn.Linear:
                    self.steps.append((layer._parameters, None))
                elif type(layer) in _ACTIVATIONS:
                    function = _function(layer)
                    if self.steps and self.steps[-1][0] is not None and self.steps[-1][1] is None:
                        self.steps[-1] = (self.steps[-1][0], function)
                    else:
                        self.steps.append((None, function))
                else:
                    raise NotRecognised(f"the networks have a layer of class {type(layer).__name__}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output for a batch, shape ``(n, n_outputs)``."""
        for parameters, activation in self.steps:
            if parameters is not None:
                x = linear(x, parameters["weight"], parameters["bias"])
            if activation is not None:
                x = activation(x)
        return x


def _function(layer: Any) -> Callable[..., Any]:
    if type(layer) is nn.Tanh:
        return torch.tanh
    if type(layer) is nn.ReLU and not layer.inplace:
        return torch.relu
    return layer.forward  # type: ignore[no-any-return]


def features_of(policy: Any, *extractors: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that makes features, shape ``(n, n_features)``, of a batch of observations.

    Raises:
        NotRecognised: If the features are not the flattened observation.
    """
    for extractor in extractors:
        if type(extractor) is not FlattenExtractor or type(extractor.flatten) is not nn.Flatten:
            raise NotRecognised(f"the features come from a {type(extractor).__name__}")
    space = policy.observation_space
    if isinstance(space, spaces.Box) and not (policy.normalize_images and is_image_space(space)):
        return _flat_floats
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise NotRecognised(f"the observation space is a {type(space).__name__}")
    images = policy.normalize_images

    def features(observations: torch.Tensor) -> torch.Tensor:
        return preprocess_obs(observations, space, normalize_images=images).flatten(1)  # type: ignore[union-attr]

    return features


def _flat_floats(observations: torch.Tensor) -> torch.Tensor:
    if observations.dtype is not torch.float32:
        observations = observations.float()
    return observations if observations.dim() == 2 else observations.flatten(1)
