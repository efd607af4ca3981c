"""The algorithms that can be asked for, by name, and the action spaces that each supports: as data, so that nothing is imported."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from rltrack.errors import ConfigurationError, MissingExtra, did_you_mean
from rltrack.named_code import import_code, is_code_name

ALL_ACTIONS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")
FINITE_ACTIONS = ("Discrete", "MultiDiscrete", "MultiBinary")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An algorithm that can be asked for by name.

    Attributes:
        name: As a configuration has it.
        module: The package that has its class; empty for ``package.module:Name``.
        actions: Action spaces that it supports; empty if only its class knows.
        extra: The extra of rltrack that installs it.
    """

    name: str
    module: str
    actions: tuple[str, ...]
    extra: str | None = None

    def load(self) -> type[Any]:
        """Import the class.

        Raises:
            ConfigurationError: If a class of one's own is not there.
            MissingExtra: If the package that holds it is not installed.
        """
        if is_code_name(self.name):
            return import_code(self.name, "agent.algorithm")  # type: ignore[no-any-return]
        try:
            return getattr(importlib.import_module(self.module), self.name.rpartition(".")[2])  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"Algorithm {self.name} is in the package '{self.module}', which is not installed ({error}). "
                f"Install it with: pip install 'rltrack[{self.extra}]'."
            ) from None


TABLE = [
    *(Algorithm(name, "stable_baselines3", ALL_ACTIONS) for name in ("PPO", "A2C")),
    Algorithm("DQN", "stable_baselines3", ("Discrete",)),
    *(Algorithm(name, "stable_baselines3", ("Box",)) for name in ("SAC", "TD3", "DDPG")),
    *(Algorithm(name, "sb3_contrib", ("Box",), "contrib") for name in ("TQC", "CrossQ")),
    *(Algorithm(name, "sb3_contrib", ALL_ACTIONS, "contrib") for name in ("TRPO", "RecurrentPPO")),
    Algorithm("MaskablePPO", "sb3_contrib", FINITE_ACTIONS, "contrib"),
    Algorithm("QRDQN", "sb3_contrib", ("Discrete",), "contrib"),
    Algorithm("ARS", "sb3_contrib", ("Box", "Discrete"), "contrib"),
    Algorithm("sbx.PPO", "sbx", ("Box", "Discrete", "MultiDiscrete", "MultiBinary"), "sbx"),
    Algorithm("sbx.DQN", "sbx", ("Discrete",), "sbx"),
    *(Algorithm(f"sbx.{name}", "sbx", ("Box",), "sbx") for name in ("SAC", "TD3", "DDPG", "TQC", "CrossQ")),
]
ALGORITHMS = {algorithm.name.lower(): algorithm for algorithm in TABLE}
_ALIASES = {"ppo_lstm": "recurrentppo", "recurrent_ppo": "recurrentppo", "ppo_mask": "maskableppo",
            "maskable_ppo": "maskableppo", "qr_dqn": "qrdqn"}  # fmt: skip


def spelled(name: str) -> str:
    """Return a known algorithm's own name, whatever the case or alias; another text as it is."""
    key = name.lower()
    algorithm = ALGORITHMS.get(_ALIASES.get(key, key))
    return name if algorithm is None else algorithm.name


def find_algorithm(name: str) -> Algorithm:
    """Return an algorithm by its name, in any case.

    Raises:
        ConfigurationError: If there is none, with the nearest names.
    """
    if is_code_name(name):
        return Algorithm(name, "", ())
    algorithm = ALGORITHMS.get(spelled(name).lower())
    if algorithm is None:
        names = [item.name for item in TABLE]
        raise ConfigurationError(
            f"Unknown algorithm '{name}'.{did_you_mean(name, names)} Known: {', '.join(names)}; or package.module:Class for one of "
            "your own."
        )
    return algorithm
