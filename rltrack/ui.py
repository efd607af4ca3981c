"""Serves MLflow's page and TensorBoard for a root."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from rltrack.addresses import file_uri, without_account
from rltrack.errors import ConfigurationError, RltrackError
from rltrack.processes import end_session
from rltrack.runs import Root
from rltrack.tracking.sinks.embedded import ensure_database

HOST = "127.0.0.1"
_START_SECONDS = 120.0


def serve(root: Root, *, port: int = 5000, tensorboard_port: int = 6006, tell: Callable[[str], None] = print) -> None:
    """Serve both pages on loopback until Ctrl-C or SIGTERM; then end both servers.

    Args:
        root: The root whose runs are shown. If ``MLFLOW_TRACKING_URI`` names a server, its page is shown.
        port: Port of MLflow's page; 0 for any free one.
        tensorboard_port: Port of TensorBoard; 0 for any free one.
        tell: Called with each progress message.

    Raises:
        ConfigurationError: If a port is taken.
        RltrackError: If a server does not start.
    """
    root.check_writable()
    for run in root.runs():
        run.link_tensorboard()
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI", "")
    ports = [free_port(tensorboard_port, "--tensorboard-port")]
    commands: dict[str, tuple[list[str], str]] = {}
    if not elsewhere.startswith(("http://", "https://")):
        ports.insert(0, free_port(port, "--mlflow-port"))
        commands["MLflow"] = (
            mlflow_command(elsewhere or ensure_database(root.path), root, ports[0]),
            f"http://{HOST}:{ports[0]}",
        )
    commands["TensorBoard"] = (tensorboard_command(root, ports[-1]), f"http://{HOST}:{ports[-1]}")
    started: dict[str, subprocess.Popen[bytes]] = {}
    before = signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    try:
        with open(root.path / "ui.log", "ab") as log:
            for name, (command, _) in commands.items():
                started[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=lean_environment(),
                )
        for name, (_, address) in commands.items():
            wait_until_up(name, address, started[name], root.path / "ui.log")
            tell(f"{name:<12} {address}")
        if "MLflow" not in commands:
            tell(f"{'MLflow':<12} {without_account(elsewhere)}")
        tell("Ctrl-C ends both.")
        while all(process.poll() is None for process in started.values()):
            time.sleep(0.2)
        dead = next(name for name, process in started.items() if process.poll() is not None)
        raise RltrackError(f"{dead} ended unexpectedly; its log is {root.path / 'ui.log'}.")
    except KeyboardInterrupt:
        tell("")
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in started.values():
            end_session(process.pid)


def mlflow_command(uri: str, root: Root, port: int) -> list[str]:
    """Return the command that starts MLflow's page with one worker."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port)),
        *("--backend-store-uri", uri, "--default-artifact-root", file_uri(root.path / "artifacts")),
    ]


def tensorboard_command(root: Root, port: int) -> list[str]:
    """Return the command that starts TensorBoard for all runs."""
    return [
        *(sys.executable, "-m", "tensorboard.main", "--logdir", str(root.tensorboard_folder), "--host", HOST),
        *("--port", str(port), "--reload_interval", "5"),
    ]


def lean_environment() -> Mapping[str, str]:
    """Return this process's environment without the background jobs of MLflow's server: 2 GB and an eighth of a core."""
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    return {**os.environ, **lean}


def free_port(port: int, option: str) -> int:
    """Return a free port on loopback: this one, or any for 0.

    Raises:
        ConfigurationError: If it is taken; the message names the option for another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ConfigurationError(
                f"Port {port} is taken by another program. Choose another with {option}; 0 takes any free one."
            ) from None
        return int(probe.getsockname()[1])


def wait_until_up(name: str, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a server's first answer.

    Raises:
        RltrackError: If it ended, or took too long.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    if "mlflow db upgrade" in _log_tail(log):
        raise RltrackError(
            f"{name} did not start: its database has the schema of another MLflow. Copy it, then run `mlflow db upgrade` with its "
            f"address; see {log}."
        )
    raise RltrackError(f"{name} did not start; its log is {log}.")


def _log_tail(log: Path) -> str:
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        return file.read().decode(errors="replace")
    return ""


def _interrupt() -> None:
    raise KeyboardInterrupt
