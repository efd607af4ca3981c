"""Trainings that are killed, in forks of this process: ``python -m tests.support.kills MODE CASE FOLDER NUMBER [SEED]``.

``at-points``: one kill at each of NUMBER operations on files, spread evenly over all that the checkpoints of a training do.
``at-random``: NUMBER kills at random moments, over as many trainings as it takes. Acceleration is switched on and off between
the attempts. Every training must end as one without checkpoints and without acceleration.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rltrack.benchmarks.resume import preload_imports
from rltrack.config import TrainingConfig
from rltrack.runs import Root
from rltrack.training.trainer import Trainer
from rltrack.training.verify import comparable, first_difference, records_of

OPERATIONS = ("write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir")
ON = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
OFF = {"learning_starts": 50, "buffer_size": 300, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
CASES = {
    "ppo-norm": ("PPO", {"id": "CartPole-v1", "n_envs": 2, "normalize": True}, ON, 1500),
    "a2c": ("A2C", {"id": "CartPole-v1", "n_envs": 2}, {"policy_kwargs": {"net_arch": [8]}}, 800),
    "dqn": ("DQN", {"id": "CartPole-v1"}, {**OFF, "train_freq": 4}, 1500),
    "sac": ("SAC", {"id": "Pendulum-v1"}, OFF, 500),
    "td3": ("TD3", {"id": "Pendulum-v1"}, {**OFF, "action_noise": {"normal": 0.1}}, 500),
    "ppo-lunarlander": ("PPO", {"id": "LunarLander-v3", "n_envs": 2}, ON, 1500),
}


SHORT, OFTEN = 5, 15
"""How often to checkpoint over a training: by marks only, or by marks and also by the clock."""


def config(case: str, name: str, *, checkpoints: int, acceleration: str) -> TrainingConfig:
    algorithm, environment, hyperparameters, steps = CASES[case]
    return TrainingConfig.from_mapping(
        {
            "name": name,
            "seed": 5,
            "agent": {
                "algorithm": algorithm,
                "hyperparameters": hyperparameters,
                "device": "cpu",
                "acceleration": acceleration,
            },
            "environment": environment,
            "training": {
                "total_timesteps": steps,
                "eval_freq": steps // 3,
                "checkpoint_freq": steps // checkpoints if checkpoints else None,
                "checkpoint_seconds": 0.05 if checkpoints == OFTEN else None,
                "enable_early_stopping": True,
                "patience": 100,
            },
            "evaluation": {"episodes": 2},
        }
    )


def start(
    case: str,
    root: Path,
    name: str,
    *,
    checkpoints: int = OFTEN,
    kill_at: int | None = None,
    acceleration: str = "auto",
) -> int:
    """Train in a fork; with `kill_at`, it is killed at that operation on files. Returns its process."""

    def train() -> None:
        counter = Counter(kill_at)
        trainer = Trainer(config(case, name, checkpoints=checkpoints, acceleration=acceleration), root=root)
        trainer.loop.delivers = False
        trainer.train()
        (root / f"{name}.operations").write_text(str(counter.count))

    return in_fork(root / f"{name}.log", train)


def in_fork(log_file: Path, action: Callable[[], object]) -> int:
    """Do something in a fork of this process, which says what it says into a file. Returns its process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        action()
        code = 0
    finally:
        os._exit(code)


class Counter:
    """Counts the operations on files that checkpoints take, and ends the process at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at
        for name in OPERATIONS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, operation):
        def counted(*arguments, **keywords):
            if threading.current_thread().name.startswith("rltrack-checkpoints"):
                self.count += 1
                if self.count == self._kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **keywords)

        return counted


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(root: Path, name: str) -> dict:
    run = Root(root).find(name)
    store = run.store()
    records = records_of(run)
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1)), "each record once, in order"
    return {**comparable(store.read(store.find("last"))), "journal": records}


def check(root: Path, name: str) -> None:
    _, difference = first_difference(outcome(root, "whole"), outcome(root, name))
    assert difference is None, f"{name}: {difference}"


def kill_at_points(case: str, root: Path, number: int) -> int:
    assert end(start(case, root, "counted", checkpoints=SHORT)) == 0
    check(root, "counted")
    total = int((root / "counted.operations").read_text())
    points = sorted({1 + round(index * (total - 1) / max(1, number - 1)) for index in range(min(number, total))})
    for point in points:
        name = f"point-{point}"
        assert end(start(case, root, name, checkpoints=SHORT, kill_at=point)) == -signal.SIGKILL
        assert end(start(case, root, name, checkpoints=SHORT, acceleration="off")) == 0, name
        check(root, name)
    print(f"{case}: {len(points)} kills at {total} operations of {SHORT} checkpoints")
    return len(points)


def kill_at_random(case: str, root: Path, number: int, seed: int) -> int:
    rng = random.Random(seed)
    kills = trainings = 0
    while kills < number:
        trainings += 1
        name = f"random-{trainings}"
        while kills < number:
            pid = start(case, root, name, acceleration=rng.choice(("auto", "off")))
            time.sleep(rng.uniform(0.05, 0.9))
            os.kill(pid, signal.SIGKILL)
            if end(pid) == 0:
                break
            kills += 1
        else:
            assert end(start(case, root, name)) == 0, name
        check(root, name)
    print(f"{case}: {kills} kills in {trainings} trainings")
    return kills


def main() -> None:
    preload_imports()
    mode, case, folder, number = sys.argv[1:5]
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    assert end(start(case, root, "whole", checkpoints=0, acceleration="off")) == 0
    if mode == "at-points":
        kills = kill_at_points(case, root, int(number))
        assert kills > 0
    else:
        assert kill_at_random(case, root, int(number), int(sys.argv[5])) >= int(number)


if __name__ == "__main__":
    main()
