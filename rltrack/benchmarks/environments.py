"""Environments that SB3 ships without an id, registered so that a configuration can name them.

Write ``rltrack.benchmarks.environments:BitFlipping-v0``: importing this module registers them.
"""

from __future__ import annotations

import gymnasium as gym

for _name, _entry, _arguments in (
    ("BitFlipping-v0", "stable_baselines3.common.envs:BitFlippingEnv", {"n_bits": 4, "max_steps": 4}),
    ("ContinuousBitFlipping-v0", "stable_baselines3.common.envs:BitFlippingEnv",
     {"n_bits": 4, "max_steps": 4, "continuous": True}),
    ("MultiObs-v0", "stable_baselines3.common.envs:SimpleMultiObsEnv", {"random_start": True}),
    ("InvalidAction-v0", "sb3_contrib.common.envs:InvalidActionEnvDiscrete", {"dim": 20, "n_invalid_actions": 10}),
):  # fmt: skip
    gym.register(_name, entry_point=_entry, kwargs=_arguments)
