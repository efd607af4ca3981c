"""What serving costs: `rltrack serve` and MLflow's scoring server, against SB3's own ``predict``, side by side."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from rltrack.errors import RltrackError
from rltrack.loopback import HOST, free_port, wait_for
from rltrack.processes import end_session, python_command, spawn
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, load_agent

BATCHES = (1, 32, 256)
CLIENTS = 16
_BOOT_SECONDS, _ANSWER_SECONDS, _WARM_UP, _CALLS_AT_ONCE = 120.0, 60.0, 20, 100


@dataclass(frozen=True, slots=True)
class Cost:
    """One way to ask for actions.

    Attributes:
        way: The way.
        batch: Observations a call.
        median_ms: Median time of a call, milliseconds.
        p95_ms: 95th percentile.
    """

    way: str
    batch: int
    median_ms: float
    p95_ms: float

    @property
    def per_second(self) -> float:
        """Actions a second."""
        return 1000.0 * self.batch / self.median_ms


def measure_serving(root: Root, calls: int = 300, notify: Callable[[str], None] = print) -> list[Cost]:
    """Train a small policy, promote it, and ask it in each way, one after the other."""
    notify("training and promoting a policy")
    trainer = Trainer(
        {
            "name": "serving",
            "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 256}},
            "environment": {"id": "CartPole-v1"},
            "training": {"total_timesteps": 2048},
            "tracking": {"video": False},
        },
        root=root.path,
    )
    trainer.loop.delivers = False
    trainer.train()
    promote(root.find("serving"), "serving", gate=Gate(episodes=30))
    uri = ModelRegistry(root).uri
    import mlflow

    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/serving@champion")
    model = load_agent("serving", root=root.path)
    commands = {
        "rltrack serve": python_command("rltrack", "--root", str(root.path), "serve", "serving", "--port"),
        "mlflow models serve": [
            *python_command("mlflow", "models", "serve", "-m", "models:/serving@champion"),
            *("--env-manager", "local", "-h", HOST, "-p"),
        ],
    }
    with contextlib.ExitStack() as servers:
        ports = {}
        for name, command in commands.items():
            notify(f"starting {name}")
            ports[name] = servers.enter_context(_server(root, uri, command))
        ways: dict[str, Callable[[np.ndarray], Any]] = {
            "SB3's model.predict": lambda observations: model.predict(observations, deterministic=True)[0],
            "mlflow.pyfunc.load_model(…).predict": loaded.predict,
            **{f"{name}, one connection": _over_http(port) for name, port in ports.items()},
        }
        rows = []
        for batch in BATCHES:
            notify(f"{calls} calls with {batch} observations, in each way")
            rows += [_time(way, ask, batch, calls) for way, ask in ways.items()]
        for name, port in ports.items():
            notify(f"{CLIENTS} clients ask {name}, {min(calls, _CALLS_AT_ONCE)} calls each")
            rows.append(_at_once(f"{name}, {CLIENTS} clients", port, min(calls, _CALLS_AT_ONCE)))
        return rows


@contextlib.contextmanager
def _server(root: Root, uri: str, command: Sequence[str]) -> Iterator[int]:
    """Start a server on a free port, which ends the command."""
    port, log = free_port(), root.path / "serve.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = spawn([*command, str(port)], log, environment={**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": path})
    try:
        if not wait_for(f"http://{HOST}:{port}/ping", process, _BOOT_SECONDS):
            raise RltrackError(f"{' '.join(command[2:5])} did not start; see {log}.")
        yield port
    finally:
        end_session(process.pid)
        process.wait()


def _over_http(port: int) -> Callable[[np.ndarray], Any]:
    connection = HTTPConnection(HOST, port, timeout=_ANSWER_SECONDS)

    def ask(observations: np.ndarray) -> Any:
        body = json.dumps({"inputs": observations.tolist()})
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())["predictions"]

    return ask


def _at_once(way: str, port: int, calls: int) -> Cost:
    """Let clients ask at the same time; the time of a call is that between two answers of the server."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        begun = time.perf_counter()
        costs = list(clients.map(lambda _: _time(way, _over_http(port), 1, calls), range(CLIENTS)))
        between = 1000 * (time.perf_counter() - begun) / (CLIENTS * (calls + _WARM_UP))
    return Cost(way, 1, between, max(cost.p95_ms for cost in costs))


def _time(way: str, ask: Callable[[np.ndarray], Any], batch: int, calls: int) -> Cost:
    observations = np.random.default_rng(0).uniform(-0.05, 0.05, (batch, 4)).astype(np.float32)
    for _ in range(_WARM_UP):
        ask(observations)
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        ask(observations)
        times.append(1000 * (time.perf_counter() - begun))
    return Cost(way, batch, statistics.median(times), float(np.quantile(times, 0.95)))


def as_markdown(rows: Sequence[Cost]) -> str:
    """Return the table; the ratio is to SB3's own predict with the same batch."""
    own = {row.batch: row.median_ms for row in rows if row.way.startswith("SB3")}
    lines = ["| way | batch | median | 95th percentile | actions/s | ratio |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row.way} | {row.batch} | {row.median_ms:.2f} ms | {row.p95_ms:.2f} ms | {row.per_second:,.0f} | "
            f"{row.median_ms / own[row.batch]:.1f} |"
        )
    ours, theirs = (
        [row for row in rows if row.way.startswith(name)] for name in ("rltrack serve", "mlflow models serve")
    )
    ratio = ours[-1].per_second / theirs[-1].per_second
    lines += [
        "",
        f"One observation on one connection: rltrack serve {ours[0].median_ms:.2f} ms (median), mlflow models serve "
        f"{theirs[0].median_ms:.2f} ms. {CLIENTS} clients: {ours[-1].per_second:,.0f} and {theirs[-1].per_second:,.0f} answers/s, "
        f"ratio {ratio:.1f}.",
    ]
    return "\n".join(lines)
