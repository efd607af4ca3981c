"""What MLflow's errors mean: which pass by themselves, which need the user, and what the user has to do."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

from mlflow.exceptions import MlflowException

from rltrack.errors import ConfigurationError, SchemaMismatch
from rltrack.tracking.destination import without_password
from rltrack.tracking.sinks.schema import mismatch

_ADVICE = {
    "UNAUTHENTICATED": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    "PERMISSION_DENIED": "This account may not write there: ask for the right, or set another one's MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    "ENDPOINT_NOT_FOUND": "Check the address: it is not MLflow that answers.",
    "NOT_FOUND": "Check the address: it is not MLflow that answers.",
    "RESOURCE_DOES_NOT_EXIST": "Check the experiment (tracking.experiment, MLFLOW_EXPERIMENT_ID); if our run is gone, "
    "`rltrack sync RUN --again` delivers into a new one.",
}
"""What to do about the answers that need the user."""

_BAD_CONTENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
_SCHEMA = re.compile(
    r"database schema \(found version (\w+), but expected \w+\)|Can't locate revision identified by '(\w+)'"
)
_NO_CONNECTION = (
    ("ConnectTimeout", "no connection within its time"),
    ("ReadTimeout", "no answer within its time"),
    ("Timeout", "no answer within its time"),
    ("gaierror", "its name is not known"),
    ("NameResolutionError", "its name is not known"),
    ("SSLError", "its certificate is not accepted"),
    ("ConnectionError", "no connection"),
)
"""Class names of `requests` and `urllib3`, with what they mean; the first that is found in the chain of causes counts."""

_DATABASE_FOR_A_PERSON = (
    "unable to open database file", "readonly database", "file is not a database", "database disk image is malformed",
    "no such table", "no such column", "password authentication failed", "no password supplied", "does not exist",
    "permission denied",
)  # fmt: skip
"""What sqlite and PostgreSQL say where trying again changes nothing."""


def explain(error: Exception, address: str) -> tuple[str, bool]:
    """Return what happened, as text without passwords, and whether the user must act first.

    Args:
        error: What MLflow, a database or the network raised.
        address: Where, without its password.
    """
    chain = list(_causes(error))
    if isinstance(error, SchemaMismatch | ConfigurationError):
        return str(error), True
    text = without_password(" ".join(str(error).split()))
    schema = _SCHEMA.search(text)
    if schema is not None:
        if not address.startswith(("http://", "https://")):
            return mismatch(address, None if schema[1] == "None" else schema[1] or schema[2]), True
        return (
            f"{address} answers: {text[:300]} Its MLflow was upgraded and its database was not: stop that server, "
            "copy the database, run `mlflow db upgrade` with its address, and start the server again.",
            True,
        )
    code = str(error.error_code) if isinstance(error, MlflowException) else type(error).__name__
    refused = any(isinstance(cause, ConnectionRefusedError) for cause in chain)
    known = next((words for name, words in _NO_CONNECTION if any(name in _names(cause) for cause in chain)), None)
    if (known or refused) and code not in _ADVICE:
        is_certificate = any("SSLError" in _names(cause) for cause in chain)
        why = "connection refused" if refused else known
        advice = (
            "Correct its certificate, or name yours in MLFLOW_TRACKING_SERVER_CERT_PATH."
            if is_certificate
            else ("Start it, correct MLFLOW_TRACKING_URI, or unset that to use the root's own database.")
        )
        return f"{address} does not answer ({why}). {advice}", is_certificate
    if _is_web_page(text):
        return f"{address} answers something that is not MLflow's: {text[:200]} {_ADVICE['ENDPOINT_NOT_FOUND']}", True
    said = next((item for item in _DATABASE_FOR_A_PERSON if item in text), None)
    if said is not None and code not in _ADVICE and not address.startswith(("http://", "https://")):
        return (
            f"{address} answers: {said} ({text[:300]}). Repair it, or its access rights; then `rltrack sync --all`.",
            True,
        )
    unusable = (
        any(isinstance(cause, ImportError) for cause in chain) or "ArgumentError" in code or "NoSuchModule" in code
    )
    person = code in _ADVICE or code in _BAD_CONTENT or unusable
    return f"{address} answers {code}: {text[:500]} {_ADVICE.get(code, '')}".rstrip(), person


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from; urllib3 hides the first cause in its arguments."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or any(found is other for other in seen):
            continue
        seen.append(found)
        yield found
        inner = [getattr(found, "reason", None), *found.args]
        waiting += [found.__cause__, found.__context__, *(item for item in inner if isinstance(item, BaseException))]


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__} | (
        {"gaierror"} if isinstance(error, socket.gaierror) else set()
    )


def _is_web_page(text: str) -> bool:
    is_failure = re.search(r"error code 5\d\d", text) is not None  # of a gateway, say: it passes
    return not is_failure and (
        "not in a valid JSON format" in text or "<html" in text.lower() or "<!doctype" in text.lower()
    )
