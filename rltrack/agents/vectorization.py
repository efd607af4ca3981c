"""Where parallel environments live: in this process one after another, or each in a process of its own; by measurement.

A process of its own costs a message each way at every step, some tens of microseconds, and seconds to start; it pays where a
step costs more than that. Which is faster is measured once, at a run's first start, and then fixed: a resume is exact only
if its environments live as they lived before.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from rltrack.agents.environments import make_vec_env_from
from rltrack.agents.random_state import untouched_random_streams
from rltrack.cleanup import close_all
from rltrack.config import EnvironmentConfig

CHEAP_SECONDS = 50e-6
"""A step that costs less than this is never worth a message to another process."""

GAIN = 1.1
"""How much faster processes must be to be chosen: they also take memory, and time to start."""

_MEASURE_SECONDS, _WARM_UP_STEPS, _SEED = 0.5, 10, 0


def choose_vectorization(config: EnvironmentConfig) -> tuple[str, str]:
    """Measure, and choose.

    Args:
        config: What is built; scratch copies are stepped with random actions.

    Returns:
        ``dummy`` or ``subproc``, and the reason, with what was measured.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.n_envs == 1:
        return "dummy", "there is one environment"
    if cores == 1:
        return "dummy", "there is one core"
    with untouched_random_streams():
        serial = _steps_per_second(config.model_copy(update={"vectorization": "dummy"}))
        if 1 / serial < CHEAP_SECONDS:
            return "dummy", f"a step takes {1e6 / serial:.0f} µs, less than a message to another process"
        parallel = _steps_per_second(config.model_copy(update={"vectorization": "subproc"}))
    measured = (
        f"measured {parallel:,.0f} env steps/s in {config.n_envs} processes and {serial:,.0f} in one, on {cores} cores"
    )
    return ("subproc" if parallel > GAIN * serial else "dummy"), measured


def _steps_per_second(config: EnvironmentConfig) -> float:
    """Env steps per second over all environments, with random actions."""
    env: Any = make_vec_env_from(config, _SEED)
    try:
        env.reset()
        space, actions = env.action_space, []
        space.seed(_SEED)
        for _ in range(64):
            actions.append(np.array([space.sample() for _ in range(env.num_envs)]))
        for index in range(_WARM_UP_STEPS):
            env.step(actions[index])
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < _MEASURE_SECONDS:
            env.step(actions[count % len(actions)])
            count += 1
        return count * int(env.num_envs) / spent
    finally:
        close_all(env)
