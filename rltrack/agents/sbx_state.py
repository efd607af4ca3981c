"""The weights of SBX's algorithms, which live in JAX: trees of arrays, taken and put back leaf by leaf."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from rltrack.errors import ConfigurationError


def is_sbx(model: Any) -> bool:
    """Whether the model's class is one of SBX's."""
    return any(cls.__module__.startswith("sbx.") for cls in type(model).__mro__)


def capture(model: Any) -> dict[str, Any]:
    """Return every tree of JAX arrays that the model or its policy holds: train states and random keys."""
    jax = sys.modules["jax"]
    return {
        name: [np.array(leaf) for leaf in jax.tree_util.tree_leaves(value)]
        for name, (_, _, value) in _trees(model).items()
    }


def restore(model: Any, saved: dict[str, Any]) -> None:
    """Put the leaves back into trees of the same shape.

    Raises:
        ConfigurationError: If the model is of another shape.
    """
    jax = sys.modules["jax"]
    own = _trees(model)
    for name, leaves in saved.items():
        if name not in own:
            raise ConfigurationError(f"The saved '{name}' is unknown to this {type(model).__name__}.")
        owner, attribute, value = own[name]
        old, structure = jax.tree_util.tree_flatten(value)
        if [np.shape(leaf) for leaf in old] != [np.shape(leaf) for leaf in leaves]:
            raise ConfigurationError(
                f"The saved '{name}' does not fit this {type(model).__name__}. Build the agent with the hyperparameters with "
                "which it was saved."
            )
        fitted = [
            jax.numpy.asarray(leaf) if hasattr(was, "dtype") else leaf[()].item()
            for was, leaf in zip(old, leaves, strict=True)
        ]
        setattr(owner, attribute, jax.tree_util.tree_unflatten(structure, fitted))


def names_in(model: Any) -> frozenset[str]:
    """Return the attributes of the model that `capture` has a part of."""
    return frozenset(("policy", *(name.partition(".")[0] for name in _trees(model))))


def _trees(model: Any) -> dict[str, tuple[Any, str, Any]]:
    """Owner, attribute and value of each JAX tree, by dotted name."""
    jax = sys.modules["jax"]
    found: dict[str, tuple[Any, str, Any]] = {}
    for prefix, owner in (("", model), ("policy.", model.policy)):
        for attribute, value in vars(owner).items():
            if isinstance(value, jax.Array) or hasattr(value, "opt_state"):
                found[f"{prefix}{attribute}"] = (owner, attribute, value)
    return found
