"""Training speed with MLflow's server up, and with no server during the whole run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rltrack.errors import RltrackError
from rltrack.loopback import HOST, free_port
from rltrack.processes import spawn
from rltrack.runs import Root
from rltrack.tracking.pages import lean_environment, mlflow_command, wait_until_up

_TRAIN = """
import sys
from stable_baselines3 import PPO
from rltrack import ProgressReporter, TrainingLoop
model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
loop = TrainingLoop(model, total_timesteps=10**9, max_seconds=float(sys.argv[1]), reporter=ProgressReporter(console=False))
print(loop.run().steps_per_second)
"""


@dataclass
class Outage:
    """Env steps per second of each training.

    Attributes:
        up: With the server.
        down: Without a server.
    """

    up: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Fastest without over fastest with the server; near 1 where an outage costs nothing."""
        return max(self.down) / max(self.up)


def measure_outage(seconds: float = 60.0, trials: int = 3, notify: Callable[[str], None] = print) -> Outage:
    """Train for a while with the server up and down, interleaved."""
    found = Outage()
    with tempfile.TemporaryDirectory() as folder:
        port, unused = free_port(), free_port()
        root = Root(Path(folder) / "server")
        root.check_writable()
        command = mlflow_command(f"sqlite:///{root.path / 'server.db'}", root, port)
        log_file = root.path / "server.log"
        server = spawn(command, log_file, lean_environment())
        try:
            wait_until_up("MLflow", f"http://{HOST}:{port}/health", server, log_file)
            for trial in range(trials):
                found.up.append(_speed(seconds, f"http://{HOST}:{port}", folder))
                found.down.append(_speed(seconds, f"http://{HOST}:{unused}", folder))
                notify(f"trial {trial + 1}: up {found.up[-1]:,.0f} steps/s, down {found.down[-1]:,.0f} steps/s")
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    return found


def as_markdown(found: Outage) -> str:
    """Return the figures as a table."""
    lines = ["| MLflow's server | env steps per second, each training |", "|---|---|"]
    lines += [
        f"| {name} | {', '.join(f'{speed:,.0f}' for speed in speeds)} |"
        for name, speeds in (("up", found.up), ("down for the whole run", found.down))
    ]
    return "\n".join(lines) + f"\n\nFastest without it over fastest with it: **{found.ratio:.3f}**.\n"


def _speed(seconds: float, uri: str, folder: str) -> float:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "RLTRACK_ROOT": f"{folder}/mlruns"}
    done = subprocess.run([sys.executable, "-c", _TRAIN, str(seconds)], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RltrackError(f"The training failed: {done.stderr[-1500:]}")
    for run in Root(f"{folder}/mlruns").runs():
        if run.is_shipped():  # its retries would disturb the next training
            _end_shipper(run.shipper_lock)
    return float(done.stdout.split()[-1])


def _end_shipper(lock: Path) -> None:
    from rltrack.files import is_locked, lock_holder

    holder = lock_holder(lock)
    if holder is not None and is_locked(lock):
        os.kill(holder, signal.SIGKILL)
