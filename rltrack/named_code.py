"""Code that a configuration names: ``package.module:Name`` stands for a class or function of that module.

``myproj.env:TankEnv`` is the class or function itself. ``{"myproj.noise:make_noise": {"sigma": 0.1}}`` is what it returns when it
is called with these arguments. The current folder is importable, after everything that is installed, so that a file there cannot
take the place of another package.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rltrack.errors import ConfigurationError, NotAllowed, did_you_mean
from rltrack.secrets import one_line, shown

PROJECT = "RLTRACK_PROJECT"
"""Environment variable: the folder of the user's own modules; `rltrack up` passes the one in which it was started to its workers,
whose flow runs have temporary current folders."""

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


def is_code_name(value: object) -> bool:
    """Return whether a value has the form ``package.module:Name``."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def make_current_folder_importable() -> None:
    """Let modules of the current folder and of RLTRACK_PROJECT be imported, unless another place on the path has the name."""
    with contextlib.suppress(FileNotFoundError):  # the folder was deleted
        here = os.getcwd()
        if not {"", here} & set(sys.path):
            sys.path.append(here)
    project = os.environ.get(PROJECT)
    if project and project not in sys.path:
        sys.path.append(project)


def no_module(name: str) -> str:
    """Return the message about a module that does not exist: its name, where was searched, and what to do."""
    parent = os.path.dirname(getattr(sys.modules.get(name.rpartition(".")[0]), "__file__", "") or "")
    places = [parent] if parent else [place for place in dict.fromkeys(sys.path) if os.path.isdir(place or ".")]
    return (
        f"there is no module '{name}'. Searched: {', '.join(place or os.getcwd() for place in places)}. Run the command in the "
        f"folder that holds the package, name that folder in the environment variable {PROJECT}, or install the package "
        "(pip install -e .)."
    )


def import_module(name: str, key: str) -> Any:
    """Import a module that a configuration names.

    Args:
        name: ``package.module``.
        key: The configuration key that names it, for errors.

    Raises:
        ConfigurationError: If it does not exist (the places searched are named), or fails while it is imported.
    """
    make_current_folder_importable()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise ConfigurationError(
                f"{key}: the module '{name}' imports '{missing}', which is not installed. Install the package that has it."
            ) from error
        raise ConfigurationError(f"{key}: {no_module(missing)}") from None
    except Exception as error:  # whatever the module's own code raises
        raise ConfigurationError(
            f"{key}: the module '{name}' cannot be imported: {type(error).__name__}: {one_line(error)}."
        ) from error


def import_code(path: str, key: str, *, may_be_imported: bool = False) -> Any:
    """Return the class or function that ``package.module:Name`` stands for.

    Args:
        path: The name.
        key: The configuration key that names it, for errors.
        may_be_imported: Allow a name that the module only imported from another package.

    Raises:
        ConfigurationError: If there is no such module or no such name in it, or if the module only imported the name from another
            package: the name must show what it stands for.
    """
    match = _NAME.fullmatch(path)
    if match is None:
        raise ConfigurationError(f"{key}: '{path}' is not of the form package.module:Name.")
    module = import_module(match[1], key)
    try:
        found = getattr(module, match[2])
    except AttributeError:
        near = did_you_mean(match[2], [name for name in dir(module) if not name.startswith("_")])
        raise ConfigurationError(f"{key}: the module '{match[1]}' has no '{match[2]}'.{near}") from None
    if not callable(found):
        raise ConfigurationError(f"{key}: '{path}' is a {type(found).__name__}; name a class or a function.")
    defined = getattr(found, "__module__", None) or match[1]
    if not may_be_imported and defined.partition(".")[0] != match[1].partition(".")[0]:
        raise ConfigurationError(
            f"{key}: '{match[1]}' only imports '{match[2]}'. It is defined in '{defined}': write "
            f"{defined}:{getattr(found, '__qualname__', match[2])}."
        )
    return found


def call(path: str, arguments: Mapping[str, Any], key: str) -> Any:
    """Return what the named class or function returns for these arguments.

    Raises:
        ConfigurationError: If there is no such name, or if it does not accept the arguments.
    """
    found = import_code(path, key)
    try:
        return found(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigurationError(
            f"{key}: {path} does not accept {shown(dict(arguments))}: {one_line(error)}."
        ) from error


def resolve(value: Any, key: str) -> Any:
    """Replace names of code in plain data, at any depth, by what they stand for.

    Args:
        value: Plain data: numbers, texts, lists, mappings.
        key: The configuration key that it belongs to, for errors.

    Returns:
        The same data. ``"package.module:Name"`` is now the class or function, and ``{"package.module:Name": {…}}`` what
        it returned.
    """
    if is_code_name(value):
        return import_code(value, key)
    if isinstance(value, Mapping):
        if len(value) == 1:
            (name, arguments), *_ = value.items()
            if is_code_name(name):
                return call(name, {k: resolve(v, f"{key}.{k}") for k, v in (arguments or {}).items()}, key)
        return {name: resolve(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, key) for item in value]
    return value


def names_in(value: Any) -> Iterator[str]:
    """Yield every name of the form ``package.module:Name`` in plain data, at any depth, keys included."""
    if isinstance(value, str):
        if is_code_name(value):
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from names_in(name)
            yield from names_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from names_in(item)


def check_defined_there(value: Any, key: str) -> None:
    """Refuse names of what a module only imported, for configurations of others: an allowed module holds much that it imported.

    Args:
        value: Plain data with names.
        key: The configuration key that it belongs to, for errors.

    Raises:
        NotAllowed: If a name is not that of a class or function which is defined in exactly that module.
    """
    for path in names_in(value):
        found = import_code(path, key)
        defined = f"{getattr(found, '__module__', '')}:{getattr(found, '__qualname__', '')}"
        if defined != path:
            raise NotAllowed(
                f"{key} names '{path}', which is not defined there: it is {defined}. Allowed: classes and functions, by the module "
                "that defines them."
            )


def name_of(found: Any) -> str | None:
    """Return the name by which a class or function can be imported; None for a lambda, or one of a script or a notebook."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not module or not name or module == "__main__" or not is_code_name(f"{module}:{name}"):
        return None
    loaded = sys.modules.get(module)
    return f"{module}:{name}" if getattr(loaded, name, None) is found else None
