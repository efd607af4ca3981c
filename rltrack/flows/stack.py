"""The whole stack on one machine, without docker: Prefect server, MLflow's page, TensorBoard, workers, deployments.

A supervisor, a background process in its own session (`rltrack.flows.supervisor`), starts the parts, restarts those that die,
and drains on SIGTERM: running flows are suspended at a boundary, with a version, and resume after the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rltrack.errors import ConfigurationError, RltrackError, RunBusy
from rltrack.files import is_locked, lock_holder, replace_text, take_lock
from rltrack.flows.databases import Databases
from rltrack.flows.server import ServerFolder, end_hung_server
from rltrack.loopback import answers, free_port, refuse_equal_ports
from rltrack.processes import end_session, lives, python_command, spawn
from rltrack.runs import Root

PORTS = {"prefect": 4200, "mlflow": 5000, "tensorboard": 6006}
START_SECONDS = 300.0
DRAIN_SECONDS, DELIVERY_SECONDS = 40.0, 20.0


@dataclass(frozen=True)
class Options:
    """How a stack is started.

    Attributes:
        workers: Number of worker processes.
        database_url: A PostgreSQL server for Prefect's and MLflow's databases; None for sqlite under the root.
        ports: Port of ``prefect``, ``mlflow`` and ``tensorboard``.
    """

    workers: int = 1
    database_url: str | None = None
    ports: Mapping[str, int] = field(default_factory=lambda: dict(PORTS))


class StackFolder:
    """The folder with the state and logs of a root's stack."""

    def __init__(self, root: Path) -> None:
        self.path = root / "stack"
        self.lock = self.path / "lock"
        self.options_file = self.path / "options.json"
        self.state_file = self.path / "state.json"

    def is_up(self) -> bool:
        """Whether a supervisor is running."""
        return is_locked(self.lock)

    def options(self) -> Options:
        """Return the options with which it was started."""
        return Options(**json.loads(self.options_file.read_text(encoding="utf-8")))

    def state(self) -> dict[str, Any]:
        """Return the state that the supervisor last wrote."""
        try:
            return dict(json.loads(self.state_file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}


def up(
    root: Root,
    options: Options,
    notify: Callable[[str], None],
    *,
    chosen_ports: frozenset[str] = frozenset(),
    foreground: bool = False,
) -> None:
    """Start the stack and wait until all parts answer; a running stack is not changed.

    Args:
        root: The root of all runs.
        options: Its options.
        notify: Called with each progress message.
        chosen_ports: Ports that the user chose; others are replaced if they are taken.
        foreground: Be the supervisor, until SIGTERM or Ctrl-C, as systemd wants it.

    Raises:
        ConfigurationError: If it is up with other options, or a chosen port is taken.
        MissingExtra: If PostgreSQL is asked for without its driver.
        RltrackError: If a part does not start.
        RunBusy: If another process is starting it, and does not end.
    """
    root.check_writable()
    folder = StackFolder(root.path)
    folder.path.mkdir(exist_ok=True)
    lock = take_lock(folder.path / "lock.up", wait_seconds=START_SECONDS)
    if lock is None:
        raise RunBusy(f"Another `rltrack up` has been starting the stack under {root.path} for {START_SECONDS:.0f} s.")
    try:
        if folder.is_up():
            _refuse_other(root, folder.options(), options, chosen_ports)
            notify("The stack is up already.")
            return
        _write_options(folder, options, chosen_ports, notify)
        if not foreground:
            _start(root, folder)
    finally:
        os.close(lock)
    if foreground:
        from rltrack.flows.supervisor import supervise

        supervise(root.path)


def _refuse_other(root: Root, now: Options, wanted: Options, chosen_ports: frozenset[str]) -> None:
    """Refuse options that differ from those of the running stack; ports only where the user chose them."""
    ports = [name for name in chosen_ports if wanted.ports[name] not in (0, now.ports[name])]
    if ports or (now.workers, now.database_url) != (wanted.workers, wanted.database_url):
        at = ", ".join(f"{name} at port {port}" for name, port in now.ports.items())
        kind = "PostgreSQL" if now.database_url else "sqlite"
        raise ConfigurationError(
            f"The stack under {root.path} is up with {now.workers} worker(s), {kind}, {at}. "
            "`rltrack down` first, then `rltrack up` with other options."
        )


def _write_options(
    folder: StackFolder, options: Options, chosen_ports: frozenset[str], notify: Callable[[str], None]
) -> None:
    Databases(options.database_url).check()
    refuse_equal_ports({f"--{name}-port": port for name, port in options.ports.items()})
    ports = {name: _port(name, port, name in chosen_ports, notify) for name, port in options.ports.items()}
    started = json.dumps(asdict(Options(options.workers, options.database_url, ports)))
    replace_text(folder.options_file, started, 0o600)  # a database's address may hold a password


def _start(root: Root, folder: StackFolder) -> None:
    folder.state_file.unlink(missing_ok=True)
    log_file = folder.path / "supervisor.log"
    supervisor = spawn(python_command("rltrack.flows.supervisor", str(root.path)), log_file)
    deadline = time.monotonic() + START_SECONDS
    while not folder.state().get("ready"):
        if supervisor.poll() is not None or time.monotonic() > deadline:
            end_session(supervisor.pid, DRAIN_SECONDS)
            problem = folder.state().get("problem") or f"its log is {log_file}"
            raise RltrackError(f"The stack did not start: {problem}.")
        time.sleep(0.2)


def down(root: Root, notify: Callable[[str], None]) -> bool:
    """Drain and end the stack, and a Prefect server that hangs; return whether there was either.

    Raises:
        RltrackError: If it does not end.
    """
    was_up = _end_supervisor(StackFolder(root.path), notify)
    if end_hung_server(ServerFolder(root.path)):
        notify("Prefect's server did not answer and was killed.")
        return True
    return was_up


def _end_supervisor(folder: StackFolder, notify: Callable[[str], None]) -> bool:
    if not folder.is_up():
        stop_leftover_processes(folder)
        return False
    pid = lock_holder(folder.lock)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DRAIN_SECONDS + DELIVERY_SECONDS + 60
    shown = ""
    while folder.is_up():
        message = folder.state().get("message", "")
        if message and message != shown:
            notify(shown := message)
        if time.monotonic() > deadline:
            raise RltrackError(f"The stack does not end; see {folder.path / 'supervisor.log'} (process {pid}).")
        time.sleep(0.2)
    return True


def status(root: Root) -> list[dict[str, Any]]:
    """Return a row for each part of the stack: name, whether it is healthy, address, process, restarts."""
    folder = StackFolder(root.path)
    healthy = folder.is_up()
    state = folder.state() if healthy else {}
    pid = lock_holder(folder.lock) if healthy else None
    rows: list[dict[str, Any]] = [
        {"part": "supervisor", "healthy": healthy, "address": None, "pid": pid, "restarts": 0}
    ]
    for part in state.get("parts", []):
        alive = lives(part["pid"])
        rows.append({**part, "healthy": alive and (part["address"] is None or answers(part["address"], timeout=3))})
    return rows


def api_address(root: Root) -> str | None:
    """Return the address of the stack's Prefect API; None if it does not answer."""
    return ServerFolder(root.path).address()


def auth_file(root: Root) -> Path:
    """Return the file with the password of the stack's Prefect API."""
    return ServerFolder(root.path).auth_file


def _port(name: str, port: int, chosen: bool, notify: Callable[[str], None]) -> int:
    """Return the port if it is free, else another one; a port that the user chose must be free."""
    try:
        return free_port(port, f"--{name}-port")
    except ConfigurationError:
        if chosen:
            raise
        other = free_port(0, f"--{name}-port")
        notify(f"Port {port} is taken; {name} listens at {other}.")
        return other


def stop_leftover_processes(folder: StackFolder) -> None:
    """End the processes of a supervisor that was killed."""
    for part in folder.state().get("parts", []):
        if part["pid"] is None or part["part"] == "prefect":
            continue
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(part["pid"])
            words = " ".join(process.cmdline())
            if any(module in words for module in ("mlflow", "tensorboard", "prefect")):
                end_session(process.pid, 10.0)
    folder.state_file.unlink(missing_ok=True)
