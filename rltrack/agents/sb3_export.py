"""A model as the files that plain Stable-Baselines3 loads: its zip, and VecNormalize's pickle next to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.utils import LinearSchedule as TheirLinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from rltrack.agents.algorithms import LinearSchedule
from rltrack.agents.env_state.layers import vec_layers

NORMALIZATION = "vecnormalize.pkl"


def write_sb3(model: BaseAlgorithm, path: Path) -> list[Path]:
    """Write a model; nothing in the files needs rltrack.

    Args:
        model: With its environment.
        path: The zip file; VecNormalize's statistics go into ``vecnormalize.pkl`` next to it.

    Returns:
        The files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _their_schedules(model), open(path, "wb") as file:  # open: SB3 appends .zip to a path without a suffix
        model.save(file)
    normalize = model.get_vec_normalize_env()
    if normalize is None:
        return [path]
    normalize.save(str(path.parent / NORMALIZATION))
    return [path, path.parent / NORMALIZATION]


def how_to_load(model: BaseAlgorithm, path: Path, make_env: str) -> str:
    """Return the Python code that loads the files with plain SB3 and acts.

    Args:
        model: The model that was written.
        path: Its zip file, as the code is to name it; VecNormalize's statistics are next to it.
        make_env: The environment's id.
    """
    lines = [f'env = make_vec_env("{make_env}")']
    wrappers = []
    for layer in reversed(list(vec_layers(model.env)) if model.env is not None else []):
        if isinstance(layer, VecFrameStack):
            wrappers.append("VecFrameStack")
            lines.append(f"env = VecFrameStack(env, {layer.stacked_obs.n_stack})")
        elif isinstance(layer, VecTransposeImage):
            wrappers.append("VecTransposeImage")
            lines.append("env = VecTransposeImage(env)")
        elif isinstance(layer, VecNormalize):
            wrappers.append("VecNormalize")
            lines += [
                f'env = VecNormalize.load("{path.parent / NORMALIZATION}", env)',
                "env.training = env.norm_reward = False",
            ]
    kind = type(model)
    imports = [f"from {kind.__module__.partition('.')[0]} import {kind.__name__}"]
    imports.append("from stable_baselines3.common.env_util import make_vec_env")
    if wrappers:
        imports.append(f"from stable_baselines3.common.vec_env import {', '.join(sorted(set(wrappers)))}")
    load = f'model = {kind.__name__}.load("{path}", env=env)'
    act = "actions, states = model.predict(env.reset(), deterministic=True)"
    return "\n".join([*imports, "", *lines, load, act])


@contextlib.contextmanager
def _their_schedules(model: Any) -> Iterator[None]:
    """Let SB3's own class stand for our linear schedules, which it could not import; the line is the same."""
    before = dict(vars(model))
    try:
        for name, value in before.items():
            inner = value.value_schedule if isinstance(value, FloatSchedule) else value
            if isinstance(inner, LinearSchedule):
                theirs = TheirLinearSchedule(inner.start, inner.end, 1.0)
                setattr(model, name, FloatSchedule(theirs) if isinstance(value, FloatSchedule) else theirs)
        yield
    finally:
        for name, value in before.items():
            if vars(model).get(name) is not value:
                setattr(model, name, value)
