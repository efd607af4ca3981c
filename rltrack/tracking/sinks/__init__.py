"""Where records are delivered: a table from names to classes, and users' own classes by ``package.module:Name``.

A class is imported by the process that delivers, when a run is delivered to it, and nowhere else. A new sink here is a file and a
line in `TABLE`; `Sink` says what it does.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from rltrack.errors import ConfigurationError, did_you_mean
from rltrack.named_code import make_current_folder_importable

if TYPE_CHECKING:
    from rltrack.tracking.sinks.base import Sink

TABLE = {
    "mlflow": "rltrack.tracking.sinks.mlflow:MlflowSink",
    "tensorboard": "rltrack.tracking.sinks.tensorboard:TensorBoardSink",
}
"""Sinks that come with rltrack."""


def check_sink(name: str) -> None:
    """Refuse a sink that cannot be there, without importing it.

    Args:
        name: A name of the table, or ``package.module:Name``.

    Raises:
        ConfigurationError: If there is no such sink or module.
    """
    if name in TABLE:
        return
    module, colon, _ = name.partition(":")
    if not colon:
        raise ConfigurationError(
            f"There is no sink '{name}'.{did_you_mean(name, TABLE)} Known: {', '.join(TABLE)}, or package.module:Name for one of "
            "your own."
        )
    make_current_folder_importable()
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a package above it is not there
        found = False
    if not found:
        raise ConfigurationError(
            f"tracking.sinks names '{name}', and there is no module {module}. It must be installed, or lie in the "
            "current folder or one that PYTHONPATH names."
        )


def load_sink(name: str) -> type[Sink]:
    """Import a sink's class.

    Raises:
        ConfigurationError: If it cannot be imported, or is no sink.
    """
    from rltrack.tracking.sinks.base import Sink

    check_sink(name)
    module, _, attribute = TABLE.get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module raises when it is imported
        raise ConfigurationError(f"The sink '{name}' cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Sink)):
        raise ConfigurationError(f"The sink '{name}' is no subclass of rltrack.tracking.sinks.base.Sink.")
    return found
