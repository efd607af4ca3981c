"""Secrets: recognised by the names of their keys and by the form of addresses, and removed from everything that is stored.

A configuration is written to the journal, to MLflow and to Prefect, where others read it. Instead of a secret it names an
environment variable, ``{env: NAME}``, which is read only when the environment is built.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from rltrack.errors import ConfigurationError
from rltrack.text import printable

HIDDEN = "[redacted]"
_LAST_WORDS = frozenset(
    ("password", "passwd", "passphrase", "pass", "pwd", "secret", "token", "credential", "credentials", "apikey",
     "authorization", "cookie", "dsn")
)  # fmt: skip
_LAST_PAIRS = ("api_key", "access_key", "secret_key", "private_key", "signing_key", "auth_key")
_GLUED = ("password", "passwd", "passphrase", "apikey")
"""Endings of a key without an underscore, as in PGPASSWORD."""
_NO_PASSWORD = frozenset(
    ("low", "high", "band", "all", "first", "second", "last", "single", "two", "multi", "forward", "backward")
)
"""Words before ``pass`` that make it a filter or a pass over data."""
_taken: set[str] = set()
"""Values of environment variables used by `{env: NAME}`, in the forms in which texts may repeat them."""
_SHORTEST, _SHORTEST_LINE = 4, 8
_PASSWORD = re.compile(
    r"(//[^\s/:@?#\[\]'\"<>]*:)(?!\d{1,5}(?:[/?#\s]|$))(?:[^\s/'\"<>]+|[^\s'\"<>]+?)@"  # up to the last @ before a slash
)
_PASSWORD_WITHOUT_SCHEME = re.compile(r"((?:^|(?<=[\s'\"(=]))[\w.-]+:)[^\s/:@'\"]+@(?=[\w.\[-])")
_PAIR = re.compile(r"([A-Za-z_][\w.-]*)(\s?=\s?)('[^']*'|\"[^\"]*\"|[^\s&;'\"]+)")
_QUOTED_PAIR = re.compile(r"((['\"])([\w.-]+)\2\s*:\s*)(['\"])((?:\\.|(?!\4).)+)\4")
_HEADER = re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|token)\s+)?)[^\s'\",;]+")
_NOTHING = ("***", HIDDEN, "None", "True", "False", "null")


def names_secret(key: str) -> bool:
    """Whether a text under this key is a secret."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rpartition(".")[2]).lower().replace("-", "_")
    *before, last = name.split("_")
    if last == "pass" and before and before[-1] in _NO_PASSWORD:
        return False
    return name.endswith(_LAST_PAIRS) or last in _LAST_WORDS or last.endswith(_GLUED)


def is_secret(key: str, value: Any) -> bool:
    """Whether a value must not be stored: a text under such a key, or an address with a secret in it."""
    if not isinstance(value, str) or not value or value == HIDDEN:
        return False
    return (
        names_secret(key)
        or _PASSWORD.search(value) is not None
        or any(_is_secret_pair(found) for found in _PAIR.finditer(value))
    )


def redacted(value: Any, key: str = "") -> Any:
    """Return plain data with every secret in it replaced."""
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    return HIDDEN if is_secret(key, value) else value


def shown(value: Any, key: str = "", longest: int = 200) -> str:
    """Return a value for an error message: without secrets, and shortened."""
    text = without_secrets(repr(redacted(value, key)))
    return text if len(text) <= longest else f"{text[:longest]}…"


def refuse_secrets(value: Any, key: str = "") -> None:
    """Refuse plain data that contains a secret.

    Raises:
        ConfigurationError: With the key and the remedy.
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
            else "Remove it, and set it where training runs (MLFLOW_TRACKING_URI, AWS_SECRET_ACCESS_KEY, …)"
        )
        raise ConfigurationError(
            f"'{key}' looks like a secret, and a configuration is stored where others read it: in the run's folder, in MLflow, "
            f"in Prefect. {instead}."
        )


def with_environment_values(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with each ``{env: NAME}`` replaced by that environment variable's value.

    Raises:
        ConfigurationError: If a variable is not set.
    """
    return {key: _value_of(key, value) for key, value in kwargs.items()}


def without_password(text: str) -> str:
    """Return a text without passwords in addresses and connection strings, and without values of secret keys."""
    text = _PASSWORD.sub(r"\1***@", text)
    text = _PASSWORD_WITHOUT_SCHEME.sub(r"\1***@", text)
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    text = _QUOTED_PAIR.sub(
        lambda found: f"{found[1]}{found[4]}{HIDDEN}{found[4]}" if names_secret(found[3]) else found[0], text
    )
    return _PAIR.sub(lambda found: f"{found[1]}{found[2]}{HIDDEN}" if _is_secret_pair(found) else found[0], text)


def one_line(error: object) -> str:
    """Return an error's message on one line, without secrets and control characters, and without a full stop at its end."""
    return printable(without_secrets(" ".join(str(error).split()))).rstrip(".")


def without_secrets(text: str) -> str:
    """Return a text, such as an error's, without secrets: also without the values that `with_environment_values` read."""
    for value in sorted(_taken, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return without_password(text)


def _is_secret_pair(found: re.Match[str]) -> bool:
    value = found[3].strip("'\"")
    return names_secret(found[1]) and bool(value) and value not in _NOTHING and not value.startswith("$")


def _value_of(key: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or set(value) != {"env"} or not isinstance(value["env"], str):
        return value
    found = os.environ.get(value["env"])
    if found is None:
        raise ConfigurationError(
            f"environment.kwargs.{key} names the environment variable {value['env']}, which is not set. Set it where training "
            "runs."
        )
    _taken.update(form for form in _forms(found) if len(form) >= _SHORTEST)
    return found


def _forms(value: str) -> set[str]:
    """Return the forms of a value in texts: plain, in quotes, on one line or by its lines, in an address, in a header."""
    quoted = {repr(value)[1:-1], json.dumps(value)[1:-1], quote(value), quote(value, safe="")}
    lines = {line.strip() for line in value.splitlines() if len(line.strip()) >= _SHORTEST_LINE}
    encoded = base64.b64encode(value.encode(errors="surrogateescape")).decode()
    return {value, value.strip(), " ".join(value.split()), encoded, *quoted, *lines}
