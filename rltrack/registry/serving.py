"""Serving a version of a registered model with MLflow's own scoring server."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from rltrack.errors import ConfigurationError

HOST = "127.0.0.1"


def serve(uri: str, model: str, version: int, port: int, tell: Callable[[str], None]) -> None:
    """Become MLflow's scoring server for a version; does not return.

    Args:
        uri: Where the registry is.
        model: The registered model.
        version: Which version; it stays the same while it is served, whoever becomes champion meanwhile.
        port: Port on this machine.
        tell: Hears where it will answer.

    Raises:
        ConfigurationError: If the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigurationError(
                f"Port {port} cannot be used: {error.strerror}. Choose another with --port."
            ) from None
    # MLflow starts uvicorn by its name, from wherever this Python's programs are; no pickle is needed, so none is allowed
    environment = {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    tell(
        f"version {version} of '{model}' will answer at http://{HOST}:{port}/invocations in about ten seconds; Ctrl-C ends it"
    )
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{model}/{version}"]
    command += ["--env-manager", "local", "-h", HOST, "-p", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)
