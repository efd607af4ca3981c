"""MLflow's page and TensorBoard on a root's data: the commands that start them, with as little as they need."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rltrack.addresses import file_uri
from rltrack.errors import MissingExtra, RltrackError
from rltrack.files import replace_text
from rltrack.loopback import HOST, last_words, wait_for
from rltrack.processes import lives, python_command
from rltrack.runs import Root
from rltrack.tracking.destination import MLFLOW_PAGE

_START_SECONDS = 120.0


def check_mlflow_page() -> None:
    """Check that MLflow's page is installed, and not only the part of MLflow that records.

    Raises:
        MissingExtra: If it is not.
    """
    if not any(metadata.distributions(name="mlflow")):
        raise MissingExtra(
            "MLflow's page is not installed: pip install 'rltrack[ui]'. `rltrack runs`, `show` and `compare` work without it."
        )


def mlflow_command(uri: str, root: Root, port: int) -> list[str]:
    """Return what starts MLflow's page with one worker."""
    return [
        *python_command("mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port)),
        *("--backend-store-uri", uri, "--default-artifact-root", file_uri(root.path / "artifacts")),
    ]


def tensorboard_command(root: Root, port: int) -> list[str]:
    """Return what starts TensorBoard on all runs."""
    return [
        *python_command("tensorboard.main", "--logdir", str(root.tensorboard_folder), "--host", HOST),
        *("--port", str(port), "--reload_interval", "5"),
    ]


def lean_environment() -> dict[str, str]:
    """Return this process's environment without the background jobs of MLflow's server: 2 GB and an eighth of a core.

    What the server starts does not search the current folder for modules either.
    """
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    lean |= {
        "PYTHONSAFEPATH": "1",
        "UVICORN_APP_DIR": sysconfig.get_path("stdlib"),
    }  # uvicorn's default is the current folder
    return {**os.environ, **lean}


@contextlib.contextmanager
def published(root: Root, address: str) -> Iterator[None]:
    """Record in the root, as long as this process serves MLflow's page, at which address it does."""
    file = _page_file(root)
    replace_text(file, json.dumps({"address": address, "pid": os.getpid()}))
    try:
        yield
    finally:
        if _published(root).get("pid") == os.getpid():
            file.unlink(missing_ok=True)


def served_page(root: Root) -> str | None:
    """Return the address of MLflow's page for the root's own database; None if it is not served.

    It is that of ``RLTRACK_MLFLOW_PAGE``, or else that of `rltrack ui` or `rltrack up`.
    """
    if page := os.environ.get(MLFLOW_PAGE):
        return page
    found = _published(root)
    pid, address = found.get("pid"), found.get("address")
    if not isinstance(address, str) or not re.fullmatch(rf"http://{re.escape(HOST)}:[0-9]{{1,5}}", address):
        return None
    return address if isinstance(pid, int) and 0 < pid < 2**31 and lives(pid) else None


def _published(root: Root) -> dict[str, Any]:
    try:
        found = json.loads(_page_file(root).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _page_file(root: Root) -> Path:
    return root.path / "mlflow-page.json"


def wait_until_up(name: str, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a page's first answer.

    Raises:
        RltrackError: If it ended, or took too long.
    """
    if wait_for(address, process, _START_SECONDS):
        return
    if "mlflow db upgrade" in last_words(log):
        raise RltrackError(
            f"{name} did not start: its database has the schema of another MLflow. Copy it, then run `mlflow db upgrade` with its "
            f"address; see {log}."
        )
    raise RltrackError(f"{name} did not start; its last words are in {log}.")
