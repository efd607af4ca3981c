"""Replace methods of single objects, and put them back.

A replacement lives in the object's own ``__dict__``, so that the object keeps its exact class. Code that copies or pickles the
object gets the method of its class instead: a copy of an accelerated model is a plain model of SB3.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, Self


class Replacement:
    """A callable that stands for a method of one object.

    Args:
        owner: The object.
        name: Its method.
        function: What is called instead, without ``self``.
    """

    def __init__(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self.owner, self.name, self.function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what replaces the method."""
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return types.MethodType(getattr(type(self.owner), self.name), memo.get(id(self.owner), self.owner))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.owner, self.name)


class Patches:
    """The replacements that were made, in order; undone at the end of a ``with``."""

    def __init__(self) -> None:
        self._made: list[Replacement] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Call `function` in place of the owner's method."""
        replacement = Replacement(owner, name, function)
        vars(owner)[name] = replacement
        self._made.append(replacement)

    def replace_in_model(self, model: Any, name: str, function: Callable[..., Any]) -> None:
        """Call `function` in place of the model's method, and keep replacements out of what its ``save`` writes."""
        self.replace(model, name, function)
        if "_excluded_save_params" not in vars(model):
            excluded = type(model)._excluded_save_params
            self.replace(model, "_excluded_save_params", lambda: [*excluded(model), *_replaced(model)])

    def undo(self) -> None:
        """Put the methods back, except where someone replaced ours meanwhile."""
        while self._made:
            made = self._made.pop()
            if vars(made.owner).get(made.name) is made:
                del vars(made.owner)[made.name]


def _replaced(owner: Any) -> list[str]:
    return [name for name, value in vars(owner).items() if isinstance(value, Replacement)]


def overridden(owner: Any) -> list[str]:
    """Return the names of methods that were replaced on this very object."""
    return [name for name in vars(owner) if callable(getattr(type(owner), name, None))]


def replaced_on_class(kind: type) -> list[str]:
    """Return the names of methods that someone replaced on a class of Stable-Baselines3."""
    return [
        name
        for own in kind.__mro__
        if own.__module__.startswith("stable_baselines3.")
        for name, method in vars(own).items()
        if isinstance(method, types.FunctionType) and method.__module__ != own.__module__
    ]


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(modules: Iterable[Any]) -> list[Any]:
    """Return the dictionaries of the modules in which torch keeps hooks; registering one adds to them."""
    return [own[hooks] for own in map(vars, modules) for hooks in _HOOKS]
