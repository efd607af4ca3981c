"""Hooks and SB3 callbacks by their names, as a configuration's key ``hooks`` has them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rltrack.errors import ConfigurationError
from rltrack.named_code import call, is_code_name, name_of, resolve
from rltrack.secrets import shown
from rltrack.training.hooks import EVENTS, EarlyStoppingHook, LoggingHook

_EVALUATING = ("EvalCallback", "MaskableEvalCallback")


def build_hooks(section: Sequence[str | Mapping[str, Mapping[str, Any]]]) -> tuple[list[Any], list[Any]]:
    """Make what the key ``hooks`` names.

    Returns:
        Hooks of rltrack, and callbacks of Stable-Baselines3; each in its order.

    Raises:
        ConfigurationError: If a name is not there, does not take its arguments, or makes neither.
    """
    hooks, callbacks = [], []
    for item in section:
        named = {item: {}} if isinstance(item, str) else item
        for name, arguments in named.items():
            if not is_code_name(name):
                raise ConfigurationError(f"hooks: {shown(name)} is not of the form package.module:Name.")
            made = call(
                name, {key: resolve(value, f"hooks.{key}") for key, value in (arguments or {}).items()}, "hooks"
            )
            sb3 = sys.modules.get("stable_baselines3.common.callbacks")
            if sb3 is not None and isinstance(made, sb3.BaseCallback):
                callbacks.append(made)
            elif any(callable(getattr(made, event, None)) for event in EVENTS):
                hooks.append(made)
            else:
                raise ConfigurationError(
                    f"hooks: {name} makes a {type(made).__name__}, which is neither a callback of Stable-Baselines3 nor a hook "
                    f"with one of {', '.join(EVENTS)}."
                )
    return hooks, callbacks


def describe_hooks(given: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """Return the key ``hooks`` for a script's hooks and callbacks, and what it cannot say, a line each.

    A class's arguments are found where it keeps them under their own names.
    """
    section: list[Any] = []
    unknown: list[str] = []
    for item in given:
        if isinstance(item, EarlyStoppingHook | LoggingHook):
            continue  # a setting has the one, the other only prints
        kind = type(item)
        if kind.__name__ in _EVALUATING and not (item.callback or item.callback_on_new_best):
            continue  # changes nothing in training
        name = name_of(kind)
        if name is None:
            unknown.append(f"{kind.__qualname__}, which is defined in the script")
            continue
        arguments: dict[str, Any] = {}
        for key, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
            if key == "verbose" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            value = vars(item).get(key, vars(item).get(f"_{key}", parameter.empty))
            if value is parameter.empty or not _is_plain(value):
                unknown.append(f"the argument {key} of {kind.__qualname__}")
                break
            if value != parameter.default:
                arguments[key] = value
        else:
            section.append({name: arguments} if arguments else name)
    return section, unknown


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)
