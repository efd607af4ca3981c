"""Python's global random stream belongs to the training: Prefect and what it is built on get another one.

An environment may draw from the module `random`, whose state is part of each version. Prefect's websocket draws from it too, at
every ping, in a thread. Modules that are found to use it get a second copy of the module, with a stream of its own.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from types import ModuleType

_LIBRARIES = ("prefect", "websockets", "httpx", "httpcore", "anyio", "coolname", "uvicorn", "slugify")


def _second_copy() -> ModuleType:
    spec = importlib.util.find_spec("random")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


_theirs = _second_copy()


def keep_apart() -> None:
    """Give the libraries that are loaded by now a random stream of their own."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _LIBRARIES and vars(module).get("random") is random:
            module.random = _theirs  # type: ignore[attr-defined]
