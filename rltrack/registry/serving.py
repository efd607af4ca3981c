"""Serving a version of a registered model with MLflow's own scoring server.

It serves a copy under the root, made when the server starts: the data of the version, checked against its digest, and the
code of this rltrack. Later changes in the registry are not served.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rltrack.files import make_private_folder
from rltrack.loopback import HOST, free_port
from rltrack.registry.digest import DIGEST_TAG
from rltrack.registry.loading import write_served
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.registered import Registered


def serve(registry: ModelRegistry, model: str, found: Registered, port: int, tell: Callable[[str], None]) -> None:
    """Replace this process by MLflow's scoring server for a version; does not return.

    Args:
        registry: Where it is registered.
        model: The registered model.
        found: Which version; it stays the same while it is served, also if another one becomes champion.
        port: Port on this machine.
        tell: Called with each progress message.

    Raises:
        ConfigurationError: If the port is taken.
        ModelBroken: If its files are missing or changed.
    """
    port = free_port(port, "--port")
    copy = copy_to_serve(registry, model, found, port)
    # MLflow starts uvicorn by its name, from wherever this Python's programs are; no pickle is needed, so none is allowed
    environment = {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **os.environ,
        "MLFLOW_TRACKING_URI": registry.uri,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    tell(
        f"version {found.version} of '{model}' will answer at http://{HOST}:{port}/invocations in about ten seconds; Ctrl-C ends it"
    )
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(copy)]
    command += ["--env-manager", "local", "-h", HOST, "-p", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def copy_to_serve(registry: ModelRegistry, model: str, found: Registered, port: int) -> Path:
    """Write the copy that is served on a port, replacing an earlier one; return its folder.

    Raises:
        ModelBroken: If the version's files are missing or changed.
    """
    folder = registry.root.path / "served"
    make_private_folder(registry.root.path)
    make_private_folder(folder)
    copy = folder / str(port)
    shutil.rmtree(copy, ignore_errors=True)
    what = f"Version {found.version} of '{model}'"
    write_served(registry.client, found.model_id, what, found.tags.get(DIGEST_TAG), copy)
    return copy
