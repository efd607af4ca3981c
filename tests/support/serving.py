"""`rltrack serve` under load: ``python -m tests.support.serving FOLDER [SECONDS CHANGES OUTAGE]``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import psutil

from rltrack.loopback import free_port, wait_for
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.tracking.destination import Destination, write_destination
from rltrack.tracking.shipper import prepare_process
from tests.support.models import add_skill, run_of_skill
from tests.support.servers import MlflowServer

STATED_SECONDS = 5.0
"""Within which a new champion answers: a look a second, and loading."""


class Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port = process, port

    def wait_for_version(self, version: int, inputs) -> list:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status, predictions, found = ask(self.port, inputs)
            assert status == 200
            if found == version:
                return predictions
            time.sleep(0.05)
        raise AssertionError(f"version {version} was not served")


@contextlib.contextmanager
def started(root: Path, model: str, log: Path, **environment: str):
    """`rltrack serve MODEL` on a free port."""
    port = free_port()
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "rltrack", "--root", str(root), "serve", model, "--port", str(port)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **environment},
        )  # fmt: skip
    try:
        assert wait_for(f"http://127.0.0.1:{port}/ping", process, 120), log.read_text()[-3000:]
        yield Server(process, port)
    finally:
        process.kill()
        process.wait()


def ask(port: int, inputs, connection: HTTPConnection | None = None):
    """Return status, predictions and version of one request."""
    own = connection or HTTPConnection("127.0.0.1", port, timeout=60)
    own.request("POST", "/invocations", json.dumps({"inputs": inputs}), {"Content-Type": "application/json"})
    response = own.getresponse()
    answer = json.loads(response.read())
    return response.status, answer.get("predictions"), answer.get("version")


class Client(threading.Thread):
    """Asks one request after the other, and keeps when which version answered."""

    def __init__(self, port: int, stop: threading.Event):
        super().__init__()
        self.port, self.stop = port, stop
        self.answers: list[tuple[float, float, int, float]] = []
        self.failed: list[object] = []

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                status, predictions, version = ask(self.port, [[0.5]], connection)
                if status != 200:
                    self.failed.append(status)
                self.answers.append((begun, time.monotonic(), version, predictions[0][0]))
            except Exception as error:
                self.failed.append(error)
                connection = HTTPConnection("127.0.0.1", self.port, timeout=60)


def under_load(folder: Path, seconds: float, changes: int, outage: float, clients: int = 8) -> dict[str, object]:
    """Clients ask while versions are promoted and rolled back, and the registry is down for a while.

    Returns:
        What was seen; everything that must hold is asserted.
    """
    prepare_process()
    registry_server = MlflowServer(folder / "registry").start()
    os.environ["MLFLOW_TRACKING_URI"] = registry_server.uri
    root = Root(folder / "mlruns")
    skills = [0.2, 0.4, 0.6, 0.8]
    run = run_of_skill(root.path, "loaded", skills[0])
    write_destination(run, Destination(registry_server.uri, "loaded"))
    promote(run, "loaded", gate=Gate(episodes=30))
    for skill in skills[1:]:
        promote(run, "loaded", version=add_skill(run, skill), gate=Gate(episodes=30))
    registry = ModelRegistry(root)
    stop = threading.Event()
    try:
        with started(root.path, "loaded", folder / "serve.log") as server:
            threads = [Client(server.port, stop) for _ in range(clients)]
            memory = psutil.Process(server.process.pid)
            champions = [(time.monotonic(), 4)]
            for thread in threads:
                thread.start()
            time.sleep(seconds / 8)
            before = memory.memory_info().rss
            pause = (seconds * 0.7 - outage) / changes
            for index in range(changes):
                if index == changes // 2:
                    registry_server.kill()
                    time.sleep(outage)
                    registry_server.start()
                version = (index + 1) % 4 + 1  # rollbacks and their reverse move the alias alike
                registry.point("loaded", "champion", version)
                champions.append((time.monotonic(), version))
                time.sleep(pause)
            time.sleep(STATED_SECONDS)
            after = memory.memory_info().rss
            stop.set()
            for thread in threads:
                thread.join()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
    finally:
        stop.set()
        registry_server.kill()
    answers = check_answers(threads, skills, champions)
    assert after - before < 20 * 2**20, f"memory grew from {before // 2**20} to {after // 2**20} MB"
    times = sorted(1000 * (ended - begun) for begun, ended, _, _ in answers)
    return {
        "answers": len(answers),
        "failed": 0,
        "changes": len(champions) - 1,
        "by version": dict(sorted(Counter(version for _, _, version, _ in answers).items())),
        "median_ms": round(times[len(times) // 2], 2),
        "p99_ms": round(times[int(len(times) * 0.99)], 2),
        "longest_ms": round(times[-1], 1),
        "memory_mb": (before // 2**20, after // 2**20),
        "log": (folder / "serve.log").read_text().splitlines()[-30:],
    }


def check_answers(
    threads: list[Client], skills: list[float], champions: list[tuple[float, int]], late: float = STATED_SECONDS
) -> list:
    """Check that no request failed, and that each answer is of a version that was champion within `late` seconds; return them.

    Args:
        threads: Clients that have ended.
        skills: The action of each version.
        champions: When the alias was moved, and to which version.
        late: Within which a new champion must answer.
    """
    answers = [answer for thread in threads for answer in thread.answers]
    assert [error for thread in threads for error in thread.failed] == []
    for begun, ended, version, action in answers:
        assert abs(action - skills[version - 1]) < 1e-6, "the action is that of the version which the answer names"
        assert version in _allowed(champions, begun - late, ended)
    assert {version for _, _, version, _ in answers} == {version for _, version in champions}
    return answers


def _allowed(champions: list[tuple[float, int]], begin: float, end: float) -> set[int]:
    """The versions that were champion at some time between two moments."""
    allowed = {version for when, version in champions if begin <= when <= end}
    earlier = [version for when, version in champions if when < begin]
    return allowed | set(earlier[-1:]) | ({champions[0][1]} if not earlier else set())


if __name__ == "__main__":
    numbers = [float(word) for word in sys.argv[2:]] or [120.0, 20.0, 20.0]
    print(json.dumps(under_load(Path(sys.argv[1]), numbers[0], int(numbers[1]), numbers[2]), indent=1))
