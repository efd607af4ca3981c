"""Wrappers that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym

from rltrack.agents.gym_types import Env
from rltrack.errors import ConfigurationError, NotAllowed
from rltrack.named_code import import_code, resolve
from rltrack.secrets import one_line, shown


def import_wrapper(path: str) -> Any:
    """Import a wrapper: ``package.module:Class``, or ``package.module.Class`` as rl_zoo3 writes it.

    Raises:
        ConfigurationError: If the path is of neither form, or nothing is there.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module:
        raise ConfigurationError(f"environment.wrappers: '{path}' is not of the form package.module:Class.")
    return import_code(f"{module}:{name}", "environment.wrappers", may_be_imported=True)


def check_wrappers(wrappers: Sequence[str | Mapping[str, object]], known: Collection[str]) -> None:
    """Refuse names that are not of wrappers, for configurations of others: a module holds much that it only imported.

    Raises:
        NotAllowed: If one is not a subclass of Gymnasium's ``Wrapper`` that is defined in the module that it is named by.
    """
    for path in (path for item in wrappers for path in ([item] if isinstance(item, str) else item)):
        if path.replace(":", ".") in known:
            continue
        found = import_wrapper(path)
        is_wrapper = isinstance(found, type) and issubclass(found, gym.Wrapper)
        if not is_wrapper or f"{found.__module__}.{found.__qualname__}" != path.replace(":", "."):
            where = f" It is {found.__module__}.{found.__qualname__}: write that." if is_wrapper else ""
            raise NotAllowed(
                f"environment.wrappers names '{path}', which is no wrapper that is defined there.{where} Allowed: subclasses of "
                "gymnasium.Wrapper, by the module that defines them."
            )


def wrapper_stack(wrappers: Sequence[str | Mapping[str, Mapping[str, object]]]) -> Callable[[Env], Env] | None:
    """Return a function that puts the named wrappers around an environment, the first innermost.

    Arguments may name code: ``{"package.module:Wrapper": {"function": "package.module:name"}}``.
    """
    parts: list[tuple[Callable[..., Env], dict[str, Any]]] = []
    for item in wrappers:
        named = {item: {}} if isinstance(item, str) else item
        parts.extend(
            (import_wrapper(path), resolve(dict(arguments or {}), "environment.wrappers"))
            for path, arguments in named.items()
        )
    if not parts:
        return None

    def wrap(env: Env) -> Env:
        for wrapper, arguments in parts:
            try:
                env = wrapper(env, **arguments)
            except (TypeError, ValueError, AssertionError, AttributeError) as error:
                raise ConfigurationError(
                    f"Wrapper {getattr(wrapper, '__name__', wrapper)} cannot be put around the environment with "
                    f"{shown(arguments)}: {one_line(error)}."
                ) from error
        return env

    return wrap
