"""Serves MLflow's page and TensorBoard for a root."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

from rltrack.addresses import without_account
from rltrack.errors import RltrackError
from rltrack.loopback import HOST, free_port, refuse_equal_ports
from rltrack.processes import end_session, spawn
from rltrack.runs import Root
from rltrack.tracking.pages import (
    check_mlflow_page,
    lean_environment,
    mlflow_command,
    published,
    tensorboard_command,
    wait_until_up,
)
from rltrack.tracking.sinks.embedded import ensure_database
from rltrack.tracking.sinks.mlflow_view import page_of_runs


def serve(root: Root, *, port: int = 5000, tensorboard_port: int = 6006, notify: Callable[[str], None] = print) -> None:
    """Serve both pages on loopback until Ctrl-C or SIGTERM; then end both servers.

    Args:
        root: The root whose runs are shown. If ``MLFLOW_TRACKING_URI`` names a server, its page is shown.
        port: Port of MLflow's page; 0 for any free one.
        tensorboard_port: Port of TensorBoard; 0 for any free one.
        notify: Called with each progress message.

    Raises:
        ConfigurationError: If a port is taken, or both are the same.
        MissingExtra: If MLflow's page is not installed.
        RltrackError: If a server does not start.
    """
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI", "")
    is_remote = elsewhere.startswith(("http://", "https://"))
    if not is_remote:
        check_mlflow_page()
    root.check_writable()
    for run in root.runs():
        run.link_tensorboard()
    refuse_equal_ports({"--mlflow-port": 0 if is_remote else port, "--tensorboard-port": tensorboard_port})
    ports = [free_port(tensorboard_port, "--tensorboard-port")]
    commands: dict[str, tuple[list[str], str]] = {}
    if not is_remote:
        ports.insert(0, free_port(port, "--mlflow-port"))
        commands["MLflow"] = (
            mlflow_command(elsewhere or ensure_database(root.path), root, ports[0]),
            f"http://{HOST}:{ports[0]}",
        )
    commands["TensorBoard"] = (tensorboard_command(root, ports[-1]), f"http://{HOST}:{ports[-1]}")
    started: dict[str, subprocess.Popen[bytes]] = {}
    serving = contextlib.ExitStack()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    notify(f"Starting {' and '.join(commands)} …")
    try:
        for name, (command, _) in commands.items():
            started[name] = spawn(command, root.path / "ui.log", lean_environment())
        for name, (_, address) in commands.items():
            wait_until_up(name, address, started[name], root.path / "ui.log")
            notify(f"{name:<12} {address}")
            if name == "MLflow" and (page := page_of_runs(address)):
                notify(f"{'runs':<12} {page}")
        if "MLflow" in commands:
            serving.enter_context(published(root, commands["MLflow"][1]))
        else:
            notify(f"{'MLflow':<12} {without_account(elsewhere)}")
        notify("Ctrl-C ends both.")
        while all(process.poll() is None for process in started.values()):
            time.sleep(0.2)
        dead = next(name for name, process in started.items() if process.poll() is not None)
        raise RltrackError(f"{dead} ended unexpectedly; its log is {root.path / 'ui.log'}.")
    except KeyboardInterrupt:
        notify("")
    finally:
        signal.signal(signal.SIGTERM, before)
        serving.close()
        for process in started.values():
            end_session(process.pid)
