"""The process that keeps a stack alive (``python -m rltrack.flows.supervisor ROOT``).

It starts the parts, restarts those that die, and drains on SIGTERM: running flows are suspended at a boundary, with a
version, and resume after the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rltrack.backoff import Backoff
from rltrack.files import is_locked, lock_holder, replace_text, take_lock
from rltrack.flows.databases import Databases
from rltrack.flows.installation import Installation, installation_of
from rltrack.flows.server import ServerFolder, hold_server, is_healthy
from rltrack.flows.stack import DELIVERY_SECONDS, DRAIN_SECONDS, StackFolder, stop_leftover_processes
from rltrack.hash_seed import with_hash_seed
from rltrack.loopback import HOST
from rltrack.named_code import PROJECT
from rltrack.processes import end_session, lives, python_command, spawn
from rltrack.runs import Root
from rltrack.tracking.destination import MLFLOW_PAGE
from rltrack.tracking.pages import lean_environment, mlflow_command, published, tensorboard_command, wait_until_up
from rltrack.tracking.sinks.embedded import ensure_database

_POLL_SECONDS = 0.5
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0


@dataclass
class Part:
    """A process of the stack.

    Attributes:
        name: Such as ``mlflow`` or ``worker-1``.
        command: What starts it.
        address: Its address; None for a worker.
        environment: Its environment.
        log: Its log file.
    """

    name: str
    command: list[str]
    address: str | None
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_WAIT, _LONGEST_WAIT))

    def start(self) -> None:
        """Start it."""
        self.process = spawn(self.command, self.log, self.environment)

    def keep_alive(self) -> bool:
        """Start it again if it died, later each time; return whether anything changed."""
        if self.process is not None and self.process.poll() is None:
            return False
        if self.process is not None:
            self.process = None
            self.backoff.failed()
            return True
        if not self.backoff.is_due():
            return False
        self.start()
        return True

    def end(self, seconds: float = 10.0) -> None:
        """End it and wait."""
        if self.process is not None:
            end_session(self.process.pid, seconds)
            self.process.wait()


class Supervisor:
    """Starts the parts, keeps them alive, and drains.

    Args:
        root: The root of all runs.
    """

    def __init__(self, root: Root) -> None:
        self.root = root
        self.folder = StackFolder(root.path)
        self.options = self.folder.options()
        self.databases = Databases(self.options.database_url)
        self.parts: list[Part] = []
        self.stopping = threading.Event()
        self.api = ""
        self._ready = False

    def run(self) -> None:
        """Supervise until SIGTERM or Ctrl-C."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        stop_leftover_processes(self.folder)
        database = self.databases.prefect
        settings = {} if database is None else {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
        with hold_server(self.root.path, port=self.options.ports["prefect"], settings=settings) as self.api:
            try:
                self._start()
                self._ready = True
                with published(self.root, f"http://{HOST}:{self.options.ports['mlflow']}"):
                    self._write_state("")
                    self._watch(settings)
                    self._drain()
            except Exception as error:
                self._write_state("", problem=" ".join(str(error).split()))
                raise
            finally:
                for part in reversed(self.parts):
                    part.end()
        self._wait_for_server()

    def _start(self) -> None:
        ports, logs = self.options.ports, self.folder.path
        mlflow_page = f"http://{HOST}:{ports['mlflow']}"
        backend = self.databases.mlflow or ensure_database(self.root.path)
        self._add("mlflow", mlflow_command(backend, self.root, ports["mlflow"]), mlflow_page, lean_environment())
        tensorboard = tensorboard_command(self.root, ports["tensorboard"])
        self.root.tensorboard_folder.mkdir(exist_ok=True)
        self._add("tensorboard", tensorboard, f"http://{HOST}:{ports['tensorboard']}", lean_environment())
        for part in self.parts:
            assert part.process is not None
            assert part.address is not None
            wait_until_up(part.name, part.address, part.process, part.log)
        environment = self._worker_environment(mlflow_page)
        os.environ.update(environment)
        from rltrack.flows import deployments  # Prefect reads its settings when it is imported

        own, log = installation_of(self.root), logs / "deploy.log"
        steps = deployments.deploy(self.root, own, adopt=True, log=log, environment=environment)
        replace_text(self.folder.path / "deployed.json", json.dumps([asdict(step) for step in steps], indent=1))
        self._resume_suspended(own)
        for number in range(1, self.options.workers + 1):
            command = python_command("prefect", "worker", "start", "--pool", own.work_pool, "--type", "process")
            self._add(f"worker-{number}", [*command, "--name", f"{own.work_pool}-{number}"], None, environment)

    def _add(self, name: str, command: list[str], address: str | None, environment: Mapping[str, str]) -> None:
        part = Part(name, command, address, environment, self.folder.path / f"{name}.log")
        part.start()
        self.parts.append(part)
        self._write_state("")

    def _worker_environment(self, mlflow_page: str) -> dict[str, str]:
        environment = {
            **os.environ,
            "PREFECT_API_URL": self.api,
            "PREFECT_API_AUTH_STRING": ServerFolder(self.root.path).auth() or "",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(ServerFolder(self.root.path).path),
            "DO_NOT_TRACK": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RLTRACK_ROOT": str(self.root.path),
            MLFLOW_PAGE: mlflow_page,
        }
        environment.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
        environment.setdefault(PROJECT, os.getcwd())
        if self.databases.mlflow is not None:
            environment["MLFLOW_TRACKING_URI"] = mlflow_page
        return with_hash_seed(environment)

    def _watch(self, settings: Mapping[str, str]) -> None:
        while not self.stopping.wait(_POLL_SECONDS):
            changed = [part.keep_alive() for part in self.parts]  # all of them, not up to the first
            if any(changed):
                self._write_state("")
            server = ServerFolder(self.root.path)
            if not lives(server.pid()):
                with hold_server(self.root.path, port=self.options.ports["prefect"], settings=settings):
                    self._write_state("")

    def _drain(self) -> None:
        """Suspend running flows at a boundary, with a version; start nothing new."""
        from rltrack.flows import work_pool
        from rltrack.flows.suspending import running_flow_runs, suspend

        if not is_healthy(self.api):
            return
        own = installation_of(self.root)
        paused = work_pool.pause(own, True)  # False: it was paused by the user, and stays paused
        running = running_flow_runs(own)
        for flow_run in running:
            suspend(flow_run.id)
        names = [flow_run.name for flow_run in running]
        locks = [run.lock_file for run in self.root.runs() if run.name in names]
        for lock in locks:
            pid = lock_holder(lock) if is_locked(lock) else None
            if pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)
        if names:
            self._write_state(f"suspending at the next boundary: {', '.join(names)}")
        deadline = time.monotonic() + DRAIN_SECONDS
        while any(is_locked(lock) for lock in locks) and time.monotonic() < deadline:
            time.sleep(0.2)
        while running_flow_runs(own) and time.monotonic() < deadline:
            time.sleep(0.5)
        suspended = {"paused": paused, "flow_runs": [str(flow_run.id) for flow_run in running]}
        replace_text(self.folder.path / "suspended.json", json.dumps(suspended))
        self._deliver_rest()

    def _deliver_rest(self) -> None:
        """Wait for deliveries to MLflow's server before it stops; the next command delivers the rest."""
        deadline = time.monotonic() + DELIVERY_SECONDS
        while (rest := [run for run in self.root.runs() if run.is_shipped() and not run.is_locked()]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.2)
        for run in rest:
            pid = lock_holder(run.shipper_lock)
            if pid is not None:
                end_session(pid)

    def _resume_suspended(self, own: Installation) -> None:
        from rltrack.flows import work_pool
        from rltrack.flows.suspending import resume_suspended

        file = self.folder.path / "suspended.json"
        if file.exists():
            suspended = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(suspended, list):  # written by an earlier rltrack: resume everything that is suspended
                suspended = {"paused": True, "flow_runs": None}
            if suspended["paused"]:
                work_pool.pause(own, False)
            resume_suspended(own, suspended["flow_runs"])
            file.unlink()

    def _wait_for_server(self) -> None:
        """Wait until the server ends, if it has no other users."""
        deadline = time.monotonic() + 20
        server = ServerFolder(self.root.path)
        while server.address() is not None and time.monotonic() < deadline:
            time.sleep(0.2)

    def _write_state(self, message: str, problem: str | None = None) -> None:
        server = ServerFolder(self.root.path)
        parts = [{"part": "prefect", "address": self.api.removesuffix("/api"), "pid": server.pid(), "restarts": 0}]
        parts += [
            {
                "part": part.name,
                "address": part.address,
                "pid": None if part.process is None else part.process.pid,
                "restarts": part.backoff.failures,
            }
            for part in self.parts
        ]
        state = {"ready": self._ready, "message": message, "problem": problem, "parts": parts}
        replace_text(self.folder.state_file, json.dumps(state))


def supervise(root: Path) -> None:
    """Be the supervisor of a root, unless it has one."""
    folder = StackFolder(root)
    lock = take_lock(folder.lock, wait_seconds=1.0)
    if lock is None:
        return
    Supervisor(Root(root)).run()


if __name__ == "__main__":
    supervise(Path(sys.argv[1]))
