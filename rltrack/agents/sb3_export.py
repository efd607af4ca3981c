"""A model as the files that plain Stable-Baselines3 loads: its zip, and VecNormalize's pickle next to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.utils import LinearSchedule as TheirLinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from rltrack.agents.algorithms import LinearSchedule
from rltrack.agents.env_state.layers import vec_layers
from rltrack.agents.environments import environment_creator
from rltrack.config import EnvironmentConfig
from rltrack.named_code import is_code_name

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


def how_to_load(model: BaseAlgorithm, path: Path, environment: EnvironmentConfig) -> str:
    """Return the Python code that loads the files with plain SB3 and acts.

    Args:
        model: The model that was written.
        path: Its zip file, as the code is to name it; VecNormalize's statistics are next to it.
        environment: How the environment is built.
    """
    make_env, modules = _make_env(environment)
    lines = [f"env = {make_env}"]
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
    imports = [f"import {module}" for module in sorted(modules)]
    imports += [f"from {kind.__module__.partition('.')[0]} import {kind.__name__}"]
    imports.append("from stable_baselines3.common.env_util import make_vec_env")
    if wrappers:
        imports.append(f"from stable_baselines3.common.vec_env import {', '.join(sorted(set(wrappers)))}")
    load = f'model = {kind.__name__}.load("{path}", env=env)'
    act = "actions, states = model.predict(env.reset(), deterministic=True)"
    return "\n".join([*imports, "", *lines, load, act])


def _make_env(section: EnvironmentConfig) -> tuple[str, set[str]]:
    """Return the call that makes the environment, and the modules that it needs."""
    modules: set[str] = set()

    def named(path: str) -> str:
        module, _, name = path.replace(":", ".").rpartition(".")
        modules.add(module)
        return f"{module}.{name}"

    def argument(value: Any) -> str:
        """Write an environment's argument, as `with_environment_values` reads it."""
        if not isinstance(value, Mapping) or set(value) != {"env"}:
            return repr(value)
        modules.add("os")
        return f"os.environ[{value['env']!r}]"

    def resolved(value: Any) -> str:
        """Write a wrapper's argument, as `named_code.resolve` reads it."""
        if isinstance(value, list):
            return f"[{', '.join(map(resolved, value))}]"
        if isinstance(value, Mapping):
            name, *others = value or [None]
            if is_code_name(name) and not others:
                return f"{named(str(name))}({keywords(value[name])})"
            return f"{{{', '.join(f'{key!r}: {resolved(item)}' for key, item in value.items())}}}"
        return named(value) if is_code_name(value) else repr(value)

    def keywords(arguments: Mapping[str, Any] | None) -> str:
        return ", ".join(f"{key}={resolved(value)}" for key, value in (arguments or {}).items())

    parts = [named(section.id) if environment_creator(section.id) else f'"{section.id}"']
    if section.kwargs:
        parts.append(
            f"env_kwargs={{{', '.join(f'{key!r}: {argument(item)}' for key, item in section.kwargs.items())}}}"
        )
    wrapped = "env"
    for item in section.wrappers:
        for path, arguments in ({item: None} if isinstance(item, str) else item).items():
            wrapped = f"{named(path)}({', '.join(filter(None, (wrapped, keywords(arguments))))})"
    if section.wrappers:
        parts.append(f"wrapper_class=lambda env: {wrapped}")
    return f"make_vec_env({', '.join(parts)})", modules


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
