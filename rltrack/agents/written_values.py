"""Values of a script as a configuration writes them: plain data, with code by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from rltrack.agents.algorithms import LinearSchedule as OurLinearSchedule
from rltrack.named_code import name_of


def as_data(value: Any) -> Any:
    """Return a hyperparameter as plain data, as a configuration writes it.

    Raises:
        ValueError: If it cannot be written so, with the reason.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    if isinstance(value, TrainFreq):
        return value.frequency if value.unit is TrainFrequencyUnit.STEP else [value.frequency, value.unit.value]
    if isinstance(value, list | tuple):
        return [as_data(item) for item in value]
    if isinstance(value, OurLinearSchedule):
        return {"linear": [value.start, value.end]}
    if isinstance(value, FloatSchedule):
        return as_data(value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule):
        arguments = {"start": value.start, "end": value.end, "end_fraction": value.end_fraction}
        return {"stable_baselines3.common.utils:LinearSchedule": arguments}
    if isinstance(value, NormalActionNoise | OrnsteinUhlenbeckActionNoise):
        return _noise(value)
    name = name_of(value)
    if name is None:
        kind = getattr(value, "__qualname__", type(value).__name__)
        raise ValueError(f"{kind} has no name that can be imported; use a class or function of a module")
    return name


def _noise(noise: Any) -> dict[str, Any]:
    sigma, mean = np.unique(noise._sigma), np.unique(noise._mu)
    if len(sigma) != 1 or mean.tolist() != [0.0]:
        raise ValueError("its noise differs between the actions; use a function of a module that returns it")
    kind = "normal" if isinstance(noise, NormalActionNoise) else "ornstein-uhlenbeck"
    return {kind: float(sigma[0])}
