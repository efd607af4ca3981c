"""Trainings whose trainer, shipper or MLflow server is killed: ``python -m tests.support.tracking_kills FOLDER URI KILLS SEED``.

``URI`` is ``embedded``, or an address that an MLflow server keeps its data at. After the kills every number that was
journalled is in MLflow exactly once, with its own value and time, TensorBoard equals it, and the status is true.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from rltrack.benchmarks.resume import preload_imports
from rltrack.config import TrainingConfig
from rltrack.files import lock_holder
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.shipper import EXIT_NOT_DELIVERED, left_behind
from rltrack.training.trainer import Trainer
from tests.support.kills import end, in_fork
from tests.support.servers import MlflowServer, check_delivered

STEPS = 12_000
VICTIMS = ("trainer", "shipper", "both", "server")


def config(name: str, tracking: dict) -> TrainingConfig:
    return TrainingConfig.from_mapping(
        {
            "name": name,
            "seed": 5,
            "agent": {
                "algorithm": "PPO",
                "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
                "device": "cpu",
            },
            "environment": {"id": "CartPole-v1", "n_envs": 2},
            "training": {"total_timesteps": STEPS, "eval_freq": STEPS // 8, "checkpoint_seconds": 0.5},
            "evaluation": {"episodes": 2},
            "tracking": tracking,
        }
    )


def start(root: Path, name: str, tracking: dict) -> int:
    return in_fork(root / f"{name}.log", lambda: Trainer(config(name, tracking), root=root).train())


def kill(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def deliver_all(root: Root, timeout: float = 240.0) -> None:
    """As a person would: `rltrack sync --all` until there is nothing left."""
    from rltrack.console.deliveries import sync_runs

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(run.is_shipped() for run in root.runs()) and not left_behind(root):
            return
        if not any(run.is_shipped() for run in root.runs()):
            sync_runs(root, None, again=False)
        time.sleep(0.2)
    raise AssertionError(f"not delivered in {timeout} s; {EXIT_NOT_DELIVERED=}")


def kill_at_random(root: Path, tracking: dict, server: MlflowServer | None, number: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    counts = dict.fromkeys(VICTIMS, 0)
    names = []
    while sum(counts.values()) < number:
        names.append(f"run-{len(names)}")
        trainer = start(root, names[-1], tracking)
        run = RunDirectory(root / "runs" / names[-1])
        while is_alive(trainer) and sum(counts.values()) < number:
            time.sleep(rng.uniform(0.2, 2.5))
            victim = rng.choice(VICTIMS if server else VICTIMS[:3])
            if victim in ("shipper", "both"):
                kill(lock_holder(run.shipper_lock) if run.is_shipped() else None)
            if victim in ("trainer", "both"):
                kill(trainer)
                if end(trainer) == 0:
                    break
                trainer = start(root, names[-1], tracking)
            if victim == "server" and server is not None:
                server.kill()
                time.sleep(rng.uniform(0.0, 2.0))
                server.start(wait=False)
            counts[victim] += 1
        else:
            while is_alive(trainer):
                time.sleep(0.05)
            assert end(trainer) == 0, (root / f"{names[-1]}.log").read_text()[-2000:]
    return counts


def main() -> None:
    folder, uri, number, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    preload_imports()
    root = folder / "root"
    root.mkdir(parents=True)
    server = None if uri == "embedded" else MlflowServer(folder / "server", uri).start()
    try:
        tracking = {} if server is None else {"mlflow_tracking_uri": server.uri}
        counts = kill_at_random(root, tracking, server, number, seed)
        if server is not None:
            server.wait_until_up()
        deliver_all(Root(root))
        address = server.uri if server else f"sqlite:///{root / 'mlflow.db'}"
        metrics = sum(check_delivered(run, address, "FINISHED") for run in Root(root).runs())
        told = ", ".join(f"{victim} {count}" for victim, count in counts.items())
        print(f"{len(Root(root).runs())} runs, kills: {told}; {metrics:,} values, each once, in MLflow and TensorBoard")
    finally:
        if server is not None:
            server.kill()


if __name__ == "__main__":
    main()
