"""Secrets: told by the names of their keys, and kept out of whatever is written down.

A configuration is written to the journal, to MLflow and to Prefect, where others read it. It names an environment variable
instead, ``{env: NAME}``, which is read when the environment is built and nowhere before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from rltrack.errors import ConfigurationError

HIDDEN = "[redacted]"
_LAST_WORDS = (
    "password",
    "passwd",
    "pwd",
    "secret",
    "token",
    "credential",
    "credentials",
    "apikey",
    "authorization",
    "cookie",
)
_LAST_PAIRS = ("api_key", "access_key", "secret_key", "private_key", "signing_key", "auth_key")
_taken: set[str] = set()
"""Values that this process took from its environment for its environments; errors may repeat them."""
_SHORTEST = 4
_ADDRESS = re.compile(r"//[^/:@\s]*:[^/@\s]+@")


def is_secret(key: str, value: Any) -> bool:
    """Whether a value should not be written down: a text under such a key, or an address with a password in it."""
    if not isinstance(value, str) or not value or value == HIDDEN:
        return False
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rpartition(".")[2]).lower().replace("-", "_")
    return name.endswith(_LAST_PAIRS) or name.split("_")[-1] in _LAST_WORDS or _ADDRESS.search(value) is not None


def redacted(value: Any, key: str = "") -> Any:
    """Return plain data with every secret in it replaced."""
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    return HIDDEN if is_secret(key, value) else value


def refuse_secrets(value: Any, key: str = "") -> None:
    """Refuse plain data that holds a secret.

    Raises:
        ConfigurationError: With the key, and what to write instead.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_secrets(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_secrets(item, key)
    elif is_secret(key, value):
        variable = key.rpartition(".")[2].upper()
        instead = (
            f"Write {{env: {variable}}} instead, and set {variable} where training runs"
            if key.startswith("environment.kwargs.")
            else "Take it out, and set it where training runs (MLFLOW_TRACKING_URI, AWS_SECRET_ACCESS_KEY, …)"
        )
        raise ConfigurationError(
            f"'{key}' looks like a secret, and a configuration is written down where others read it: in the run's folder, in "
            f"MLflow, in Prefect. {instead}."
        )


def with_environment_values(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with each ``{env: NAME}`` replaced by that environment variable's value.

    Raises:
        ConfigurationError: If a variable is not set.
    """
    return {key: _value_of(key, value) for key, value in kwargs.items()}


def without_taken(text: str) -> str:
    """Return a text, such as an error's, without the values that `with_environment_values` took."""
    for value in sorted(_taken, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _value_of(key: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or set(value) != {"env"} or not isinstance(value["env"], str):
        return value
    found = os.environ.get(value["env"])
    if found is None:
        raise ConfigurationError(
            f"environment.kwargs.{key} is to be taken from the environment variable {value['env']}, which is not set. Set it where "
            "training runs."
        )
    if len(found) >= _SHORTEST:
        _taken.add(found)
    return found
