"""What serving costs: a stored policy, and MLflow's scoring server, against SB3's own ``predict``, side by side."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import numpy as np

from rltrack.errors import RltrackError
from rltrack.loopback import HOST, free_port, wait_for
from rltrack.processes import spawn
from rltrack.registry.gate import Gate
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.training.trainer import Trainer, load_agent

BATCHES = (1, 32, 256)
_BOOT_SECONDS = 120.0


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


def measure_serving(root: Root, calls: int = 300, tell: Callable[[str], None] = print) -> list[Cost]:
    """Train a small policy, promote it, and ask it in each way, one after the other."""
    tell("training and promoting a policy")
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
    port = free_port()
    tell("starting MLflow's scoring server")
    command = [sys.executable, "-m", "rltrack", "--root", str(root.path), "serve", "serving", "--port", str(port)]
    server = spawn(command, root.path / "serve.log")
    try:
        if not wait_for(f"http://{HOST}:{port}/ping", server, _BOOT_SECONDS):
            raise RltrackError(f"MLflow's scoring server did not start; see {root.path / 'serve.log'}.")
        connection = HTTPConnection(HOST, port)

        def over_http(observations: np.ndarray) -> Any:
            body = json.dumps({"inputs": observations.tolist()})
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())["predictions"]

        ways: dict[str, Callable[[np.ndarray], Any]] = {
            "SB3's model.predict": lambda observations: model.predict(observations, deterministic=True)[0],
            "mlflow.pyfunc.load_model(…).predict": loaded.predict,
            "HTTP, one connection": over_http,
        }
        return [_time(way, ask, batch, calls) for batch in BATCHES for way, ask in ways.items()]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _time(way: str, ask: Callable[[np.ndarray], Any], batch: int, calls: int) -> Cost:
    observations = np.random.default_rng(0).normal(size=(batch, 4)).astype(np.float32)
    for _ in range(20):
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
    return "\n".join(lines)
