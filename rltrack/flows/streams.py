"""Gives Prefect and its libraries their own random stream; Python's global one belongs to the training.

An environment may draw from the module `random`, whose state is part of each version. Prefect's websocket draws from it too,
at every ping, in a thread. Modules that use it get a second copy of the module, with its own stream.
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


def use_second_random() -> None:
    """Give the libraries that are loaded now the second copy of the module `random`."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _LIBRARIES and vars(module).get("random") is random:
            module.random = _theirs  # type: ignore[attr-defined]
