"""Runs the server until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import uvicorn

from rltrack.errors import ConfigurationError, RltrackError
from rltrack.loopback import HOST, free_port
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.registered import CHAMPION
from rltrack.serving.application import Limits, make_application
from rltrack.serving.following import Follower

TOKEN_VARIABLE = "RLTRACK_SERVE_TOKEN"

_CONNECTIONS, _KEEP_ALIVE_SECONDS, _SHUTDOWN_SECONDS = 512, 120, 10


def serve(
    registry: ModelRegistry,
    model: str,
    *,
    alias: str = CHAMPION,
    pin: int | None = None,
    host: str = HOST,
    port: int = 5001,
    limits: Limits | None = None,
    notify: Callable[[str], None],
) -> None:
    """Serve a model until SIGTERM or SIGINT: requests that have begun are answered before it returns.

    Args:
        registry: Where it is registered.
        model: The registered model.
        alias: What to follow.
        pin: A version to serve instead, whatever becomes champion.
        host: Address to listen on.
        port: Port there.
        limits: What one request may take.
        notify: Called with each message.

    Raises:
        ModelNotFound: If there is no such model, alias or version.
        ModelBroken: If the version cannot be loaded.
        ConfigurationError: If the port is taken, or no request could send the token.
        RltrackError: If the server does not start.
    """
    token = _token()
    port = free_port(port, "--port", host)
    first = registry.by_alias(model, alias) if pin is None else registry.version(model, pin)
    follower = Follower(registry, model, first, None if pin is not None else alias, notify)
    if token is None and host not in (HOST, "localhost", "::1"):
        notify(f"anyone who reaches {host} gets actions; set {TOKEN_VARIABLE} to ask for a token")
    config = uvicorn.Config(
        make_application(follower, limits or Limits(), token),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    what = "pinned" if pin is not None else f"following {alias}"
    notify(f"version {first.version} of '{model}' ({what}) at http://{host}:{port}/invocations; Ctrl-C ends it")
    # uvicorn raises the signal again when it has shut down, for handlers from before: an end on request is no failure
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    follower.start()
    try:
        uvicorn.Server(config).run()
    except SystemExit:  # of uvicorn's own, whose code means something else here
        raise RltrackError(f"The server could not start at {host}:{port}; its message is above.") from None
    finally:
        follower.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    notify("the server has ended")


def _token() -> str | None:
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ConfigurationError(
            f"{TOKEN_VARIABLE} has characters that HTTP's header Authorization cannot hold. Use letters of the English alphabet, "
            "digits and signs, without blanks at the ends."
        )
    return token
