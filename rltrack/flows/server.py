"""The Prefect server of a root: one process, shared by all flow runs under that root, which ends after the last of them.

Every user of the server holds a shared ``flock`` on ``prefect/users.lock``, which the kernel releases however the user
ends. The server, a background process in its own session (``python -m rltrack.flows.server FOLDER``), ends once it can take
that lock exclusively. Prefect's ephemeral server is not used: a signal can leave it behind as an orphan.

It asks every client for a password, which only the root's owner can read: anyone who reaches Prefect can run code on its
workers, and every user of a machine reaches its loopback addresses.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from rltrack.addresses import sqlite_path, sqlite_uri
from rltrack.errors import RltrackError
from rltrack.files import is_locked, lock_holder, make_private_folder, replace_text, take_lock
from rltrack.loopback import HOST, answers
from rltrack.processes import end_session, python_command, spawn

START_SECONDS = 180.0
HUNG_SECONDS = 15.0
"""A server that does not answer for so long hangs."""
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5
_GRACE_SECONDS = 3.0
"""How long the server waits for a next user."""


class ServerFolder:
    """The folder with the database, address and log of a root's Prefect server.

    Args:
        root: The root of all runs.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "prefect"
        self.users_lock = self.path / "users.lock"
        self.server_lock = self.path / "server.lock"
        self.address_file = self.path / "server.json"
        self.log_file = self.path / "server.log"
        self.settings_file = self.path / "settings.json"
        self.auth_file = self.path / "auth"

    def address(self) -> str | None:
        """Return the API's address if a server answers there, else None."""
        try:
            found = json.loads(self.address_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(found["api"]) if is_healthy(found["api"]) else None

    def auth(self) -> str | None:
        """Return the server's credentials as ``user:password``; None if it was never started."""
        try:
            return self.auth_file.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def pid(self) -> int | None:
        """Return the server's process id, or None."""
        try:
            return int(json.loads(self.address_file.read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError, KeyError):
            return None


def end_hung_server(folder: ServerFolder) -> bool:
    """End the server if it lives and does not answer, since no other one can start while it lives; return whether it did so."""
    deadline = time.monotonic() + HUNG_SECONDS
    while (pid := _server_process(folder)) is not None and folder.address() is None:
        if pid != folder.pid() and _age(pid) < START_SECONDS:  # it is starting
            return False
        if time.monotonic() > deadline:
            end_session(pid, _GRACE_SECONDS)
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _server_process(folder: ServerFolder) -> int | None:
    """Return the id of the process that is this root's server, whether it answers or not."""
    return lock_holder(folder.server_lock) if is_locked(folder.server_lock) else None


def _age(pid: int) -> float:
    """Return for how many seconds a process has lived; 0 if it is gone."""
    with contextlib.suppress(psutil.Error):
        return time.time() - float(psutil.Process(pid).create_time())
    return 0.0


def is_healthy(api: str, timeout: float = 2.0) -> bool:
    """Whether a Prefect server answers at this address of its API."""
    return answers(f"{api}/health", timeout)


def refuses(api: str, auth: str | None, timeout: float = 10.0) -> bool:
    """Whether a Prefect server refuses this password (``user:password``; None for none)."""
    request = urllib.request.Request(f"{api}/admin/version")
    if auth:
        request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (urllib.error.URLError, OSError, ValueError):
        return False


@contextlib.contextmanager
def hold_server(root: Path, *, port: int = 0, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Hold the root's Prefect server; start it if it is not running.

    Args:
        root: The root of all runs.
        port: Where a new server listens; 0 for any free port.
        settings: Further Prefect settings of a new server, such as the address of its database.

    Yields:
        The address of its API. The server runs until the last holder releases it.

    Raises:
        RltrackError: If it does not start.
    """
    folder = ServerFolder(root)
    make_private_folder(root)
    folder.path.mkdir(exist_ok=True)
    descriptor = os.open(folder.users_lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for a server that is shutting down
        yield folder.address() or _start(folder, port, settings or {})
    finally:
        os.close(descriptor)


def _start(folder: ServerFolder, port: int, settings: Mapping[str, str]) -> str:
    """Spawn a server, unless another holder does so; return its address once it answers."""
    replace_text(folder.settings_file, json.dumps(dict(settings)), 0o600)  # a database's address may hold a password
    deadline = time.monotonic() + START_SECONDS
    process: subprocess.Popen[bytes] | None = None
    while time.monotonic() < deadline:
        if process is None or process.poll() is not None:
            if process is not None and process.returncode != 0:
                break
            command = python_command("rltrack.flows.server", str(folder.path.parent), str(port))
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
            process = spawn(command, folder.log_file, environment)  # the server has settings of its own
        address = folder.address()
        if address is not None:
            return address
        time.sleep(_POLL_SECONDS)
    if (pid := _server_process(folder)) is not None:
        raise RltrackError(
            f"The Prefect server of {folder.path.parent} (process {pid}) runs and does not answer; its log is "
            f"{folder.log_file}. End it with `rltrack down`, then try again."
        )
    raise RltrackError(
        f"The local Prefect server did not start; its log is {folder.log_file}. Set PREFECT_API_URL to use another "
        "server, or use `rltrack train`, which needs none."
    )


def server_settings(folder: ServerFolder, port: int) -> dict[str, str]:
    """Return the settings of a root's server."""
    given = json.loads(folder.settings_file.read_text(encoding="utf-8")) if folder.settings_file.exists() else {}
    return {
        "PREFECT_HOME": str(folder.path),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": sqlite_uri(folder.path / "prefect.db", "aiosqlite"),
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        **({"PREFECT_SERVER_API_AUTH_STRING": auth} if (auth := folder.auth()) else {}),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        **given,
    }


def serve(root: Path, port: int) -> None:
    """Serve, in the server's own process, until no user holds the server.

    Returns at once if another server of this root is running or starting.
    """
    folder = ServerFolder(root)
    lock = take_lock(folder.server_lock)
    if lock is None:
        time.sleep(1.0)  # the caller polls for the other one's address
        return
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        port = listening.getsockname()[1]
        if folder.auth() is None:
            replace_text(folder.auth_file, f"rltrack:{secrets.token_urlsafe(24)}\n", 0o600)
        os.environ.update(server_settings(folder, port))
        _migrate(folder)
        import uvicorn
        from prefect.server.api.server import create_app

        server = uvicorn.Server(
            uvicorn.Config(
                create_app(final=True), log_level="warning", timeout_graceful_shutdown=3, ws_ping_timeout=None
            )
        )
        threading.Thread(target=_watch, args=(folder, server, port), daemon=True).start()
        server.run(sockets=[listening])


def _watch(folder: ServerFolder, server: Any, port: int) -> None:
    """Write the address once the server answers; end the server when it has no users."""
    while not server.started:
        time.sleep(_POLL_SECONDS)
    address = {"api": f"http://{HOST}:{port}/api", "pid": os.getpid()}
    replace_text(folder.address_file, json.dumps(address))
    alone_since: float | None = None
    while not server.should_exit:
        time.sleep(_WATCH_SECONDS)
        try:
            descriptor = os.open(folder.users_lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # the root was deleted
            server.should_exit = True
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone_since = None
            os.close(descriptor)
            continue
        alone_since = alone_since or time.monotonic()
        if time.monotonic() - alone_since < _GRACE_SECONDS:
            os.close(descriptor)
            continue
        folder.address_file.unlink(missing_ok=True)  # new users wait for the lock until this process has ended
        server.should_exit = True


def _migrate(folder: ServerFolder) -> None:
    """Create or migrate the database once for each version of Prefect: that takes ten seconds, a copy almost none."""
    import prefect

    from rltrack.tracking.destination import without_password

    url = os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    done = folder.path / "migrated.json"
    stamp = {"prefect": prefect.__version__, "database": without_password(url)}
    with contextlib.suppress(OSError, ValueError):
        if json.loads(done.read_text(encoding="utf-8")) == stamp and (not _is_file(url) or _file(url).exists()):
            return
    template = _template_folder() / f"prefect-{prefect.__version__}.db"
    if _is_file(url) and not _file(url).exists() and template.exists():
        shutil.copyfile(template, _file(url))
    else:
        import asyncio

        from prefect.server.database import provide_database_interface

        async def upgrade() -> None:
            database = provide_database_interface()
            await database.create_db()
            await (await database.engine()).dispose()

        new = _is_file(url) and not _file(url).exists()
        asyncio.run(upgrade())
        if new:
            _keep_template(_file(url), template)
    replace_text(done, json.dumps(stamp))


def _is_file(url: str) -> bool:
    return sqlite_path(url) is not None


def _file(url: str) -> Path:
    path = sqlite_path(url)
    assert path is not None
    return path


def _keep_template(database: Path, template: Path) -> None:
    """Keep a copy of an empty database for other roots of this user."""
    import sqlite3

    with contextlib.suppress(OSError, sqlite3.Error):
        template.parent.mkdir(parents=True, exist_ok=True)
        temporary = template.with_suffix(f".{os.getpid()}.tmp")
        with (
            contextlib.closing(sqlite3.connect(database)) as source,
            contextlib.closing(sqlite3.connect(temporary)) as copy,
        ):
            source.backup(copy)
        os.replace(temporary, template)


def _template_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rltrack"


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
