"""Python commands without the wait for their imports: a process that has imported what they need forks for each.

`Forks` makes a folder with ``python`` and ``rltrack``. They take a command line, working directory, environment, standard streams
and signals as the real ones do, and end as the command ends; the command itself runs in a fork, in a session of its own, and is
killed when they are. What a fork cannot show: what a module does when it is imported, another hash seed, a command line in the
process table, and Prefect, which is never imported ahead, as it reads its settings then. Tests of those start real processes.

All of pytest's processes share it: each holds a shared lock, and it ends when nobody does.

``python -m tests.support.forks FOLDER USERS READY`` is the process that forks.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

AHEAD = (
    "torch", "torch._dynamo", "stable_baselines3", "gymnasium", "mlflow", "mlflow.store.tracking.sqlalchemy_store",
    "matplotlib.figure", "rltrack.cli", "rltrack.comparison.page", "rltrack.registry.models", "rltrack.registry.promotion",
    "rltrack.tracking.plots", "rltrack.tracking.shipper", "rltrack.tracking.sinks.mlflow",
    "rltrack.tracking.sinks.tensorboard", "rltrack.training.trainer",
)  # fmt: skip
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)

CLIENT = """\
#!{python} -IS
import array, json, os, select, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
wanted = {{
    "program": {program!r}, "here": sys.argv[0], "arguments": sys.argv[1:], "environment": dict(os.environ),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "ignored": [number for number in {forwarded!r} if signal.getsignal(number) == signal.SIG_IGN],
}}
server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
streams = array.array("i", [0, 1, 2, os.open(".", os.O_RDONLY)])
signal.pthread_sigmask(signal.SIG_BLOCK, {forwarded!r})
server.sendmsg([json.dumps(wanted).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
started = json.loads(server.recv(100))
woken, waker = os.pipe()  # a signal just before a blocking call would wait for its end
os.set_blocking(waker, False)
signal.set_wakeup_fd(waker)
for number in {forwarded!r}:
    if number not in wanted["ignored"]:
        signal.signal(number, lambda number, frame: os.kill(started["pid"], number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {forwarded!r})
while server not in select.select([server, woken], [], [])[0]:
    os.read(woken, 100)
answer = server.recv(100)
code = json.loads(answer)["code"] if answer else 70
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class Forks:
    """The forking process and its two commands.

    Args:
        shared: A folder; whoever gives the same one gets the same process.

    Attributes:
        python: What to run instead of ``sys.executable``.
        programs: The folder with ``python`` and ``rltrack``, for PATH.
    """

    def __init__(self, shared: Path) -> None:
        self._lock = os.open(shared / "forks.users", os.O_RDWR | os.O_CREAT)
        with open(shared / "forks.folder", "a+") as known:
            fcntl.flock(known, fcntl.LOCK_EX)
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits for a process that is ending
            known.seek(0)
            folder = known.read()
            if not folder or not Path(folder).exists():
                folder = tempfile.mkdtemp(prefix="forks-")  # a socket's path is short
                self._start(Path(folder), shared / "forks.users")
                known.truncate(0)
                known.write(folder)
        self.programs = Path(folder)
        self.python = str(self.programs / "python")

    def _start(self, folder: Path, users: Path) -> None:
        for program in ("python", "rltrack"):
            file = folder / program
            text = CLIENT.format(
                python=Path(sys.executable).resolve(),
                address=str(folder / "socket"),
                program=program,
                forwarded=[int(number) for number in FORWARDED],
            )
            file.write_text(text)
            file.chmod(0o755)
        ready, told = os.pipe()
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks", str(folder), str(users), str(told)],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            pass_fds=[told],
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.close(told)
        with open(ready, "rb") as answer:
            assert answer.read() == b"ready", "the process that forks has died"

    def close(self) -> None:
        """Leave it; with its last user the process that forks ends, and every fork."""
        os.close(self._lock)


def main(folder: Path, users: Path, told: int) -> None:
    """Fork for whoever connects, until it has no users."""
    for name in AHEAD:
        importlib.import_module(name)
    from mlflow.utils import requirements_utils

    from rltrack.tracking.sinks import embedded
    from tests.support.databases import copy_for_root

    requirements_utils._init_modules_to_packages_map()  # half a second for each process that stores a model
    embedded._create = copy_for_root
    assert threading.active_count() == 1, "a thread does not come along into a fork"
    path = [item for item in sys.path[1:] if item not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    woken, waker = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    os.write(told, b"ready")
    os.close(told)
    clients: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([woken, listener, *clients.values()], [], [], 2.0)
        if not ready and _is_unused(users):
            for pid in clients:
                _kill(pid)
            shutil.rmtree(folder)
            return
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 1000)
        if listener in ready:
            client, _ = listener.accept()
            ends = [listener.fileno(), woken, waker, client.fileno(), *(other.fileno() for other in clients.values())]
            pid = _fork(client, ends, path)
            if pid is not None:
                clients[pid] = client
        for pid, client in list(clients.items()):
            if client in ready:  # nothing is ever sent: its end was closed, as it was killed
                _kill(pid)
        _tell_ends(clients)


def _is_unused(users: Path) -> bool:
    """Whether nobody holds the lock; then it is held until this process has ended."""
    lock = os.open(users, os.O_RDWR) if users.exists() else None
    if lock is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _tell_ends(clients: dict[int, socket.socket]) -> None:
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        client = clients.pop(pid)
        with contextlib.suppress(OSError):
            client.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
        client.close()


def _fork(client: socket.socket, ends: list[int], path: list[str]) -> int | None:
    message, streams, _, _ = socket.recv_fds(client, 1 << 20, 4)
    if not message:
        client.close()
        return None
    wanted = json.loads(message)
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(OSError):
            client.send(json.dumps({"pid": pid}).encode())
        return pid
    code = 70
    try:
        for end in ends:
            os.close(end)
        os.fchdir(streams[3])  # also into a folder that was removed
        for number, stream in enumerate(streams):
            if number < 3:
                os.dup2(stream, number)
            os.close(stream)
        _become(wanted, path)
        code = _run(wanted)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _become(wanted: dict[str, Any], path: list[str]) -> None:
    """Set the process up as a fresh one would be."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in FORWARDED:
        fresh = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in wanted["ignored"] else fresh)
    environment = wanted["environment"]
    os.environ.clear()
    os.environ.update(environment)
    os.setpriority(os.PRIO_PROCESS, 0, wanted["nice"])
    buffered = "PYTHONUNBUFFERED" not in environment
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")  # noqa: SIM115
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            open(number, "wb", closefd=False),  # noqa: SIM115
            encoding="utf-8",
            errors=errors,
            line_buffering=number == 2 or os.isatty(number),
            write_through=not buffered,
        )
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.executable = str(Path(wanted["here"]).with_name("python"))
    own = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = ["", *map(os.path.abspath, own), *path]
    for option in filter(None, environment.get("PYTHONWARNINGS", "").split(",")):
        warnings.simplefilter(option)
    import numpy
    import torch

    numpy.random.seed()  # random does that by itself
    torch.seed()
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


def _run(wanted: dict[str, Any]) -> int:
    """Do what the interpreter does with its command line; return the exit code."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    arguments = wanted["arguments"]
    try:
        if wanted["program"] == "rltrack":
            sys.argv[:] = [wanted["here"], *arguments]
            sys.path[0] = str(Path(wanted["here"]).parent)
            importlib.import_module("rltrack.cli").main()
            return 0
        safe_path = "-P" in arguments[:1]
        while arguments and arguments[0] in ("-u", "-I", "-S", "-P"):
            arguments = arguments[1:]
        if arguments[0] == "-m":
            with contextlib.suppress(FileNotFoundError):
                sys.path[0] = str(Path(wanted["here"]).parent) if safe_path else os.getcwd()
            sys.argv[:] = arguments[1:]
            if not hasattr(sys.modules.get(arguments[1]), "__path__"):
                sys.modules.pop(arguments[1], None)  # it may have been imported ahead
            runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        elif arguments[0] == "-c":
            sys.argv[:] = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
        else:
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            sys.argv[:] = arguments
            main.__file__ = arguments[0]
            exec(compile(Path(arguments[0]).read_bytes(), arguments[0], "exec"), main.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as the interpreter does: threads, exit functions, buffers."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
