"""What a training with rltrack costs, everything logged, against Stable-Baselines3's own `learn()`.

Beside them `learn()` after `rltrack.accelerate`, and SBX where it is installed. Every training runs in a process of its own with
one thread; the kinds alternate, and the fastest of each counts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrack.processes import python_command

KINDS = ("sb3", "rltrack", "accelerated", "sbx")
TITLES = {"sb3": "SB3's `learn()`", "rltrack": "rltrack", "accelerated": "`learn()`, accelerated", "sbx": "SBX"}


@dataclass(frozen=True, slots=True)
class Case:
    """A training to measure.

    Attributes:
        algorithm: Name of the class.
        env_id: Gymnasium's name.
        n_envs: Number of environments.
        steps: Env steps.
        bar: What rltrack's CPU time over that of bare `learn()` must not exceed.
        net_arch: Sizes of the hidden layers; None for the algorithm's default.
    """

    algorithm: str
    env_id: str
    n_envs: int
    steps: int
    bar: float
    net_arch: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Words for a table."""
        layers = f", {'×'.join(map(str, self.net_arch))}" if self.net_arch else ""
        return f"{self.algorithm} {self.env_id}, {self.n_envs} env{'s' * (self.n_envs > 1)}{layers}"


CASES = (
    Case("PPO", "CartPole-v1", 1, 8192, 0.60),
    Case("PPO", "CartPole-v1", 8, 16384, 0.75),
    Case("PPO", "Pendulum-v1", 1, 6144, 0.62),
    Case("A2C", "CartPole-v1", 1, 6000, 0.65),
    Case("DQN", "CartPole-v1", 1, 8000, 0.60),
    Case("SAC", "Pendulum-v1", 1, 3000, 0.90, (256, 256)),
    Case("TD3", "Pendulum-v1", 1, 3000, 0.90, (256, 256)),
)


@dataclass(frozen=True, slots=True)
class Times:
    """The fastest of several trainings, in seconds of CPU and wall time.

    Attributes:
        case: What was trained.
        cpu: For each kind.
        wall: For each kind.
    """

    case: Case
    cpu: dict[str, float]
    wall: dict[str, float]

    def ratio(self, kind: str) -> float:
        """CPU time of a kind over that of bare `learn()`."""
        return self.cpu[kind] / self.cpu["sb3"]

    @property
    def passed(self) -> bool:
        """Whether the bar is kept."""
        return self.ratio("rltrack") <= self.case.bar


def measure_acceleration(
    only: Collection[str] = (), trials: int = 5, notify: Callable[[str], None] = lambda _: None
) -> list[Times]:
    """Measure each case: all of them, or those whose names contain one of the given texts."""
    kinds = [kind for kind in KINDS if kind != "sbx" or importlib.util.find_spec("sbx")]
    found = []
    for case in CASES:
        if only and not any(text in case.name for text in only):
            continue
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for trial in range(trials):
            for kind in kinds:
                runs[kind].append(_in_a_process(kind, case))
                notify(f"{case.name}, {kind}, trial {trial + 1}: {runs[kind][-1]['cpu']:.2f} s CPU")
        cpu, wall = ({kind: min(run[key] for run in own) for kind, own in runs.items()} for key in ("cpu", "wall"))
        found.append(Times(case, cpu, wall))
    return found


def _in_a_process(kind: str, case: Case) -> dict[str, float]:
    layers = ",".join(map(str, case.net_arch or ()))
    words = [kind, case.algorithm, case.env_id, str(case.n_envs), str(case.steps), layers]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = python_command("rltrack.benchmarks.acceleration", *words)
    done = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _train(kind: str, algorithm: str, env_id: str, n_envs: int, steps: int, layers: list[int]) -> dict[str, float]:
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    package: Any = importlib.import_module("sbx") if kind == "sbx" else stable_baselines3
    options: dict[str, Any] = {} if kind == "sbx" else {"device": "cpu"}
    if layers:
        options["policy_kwargs"] = {"net_arch": layers}
    model = getattr(package, algorithm)("MlpPolicy", make_vec_env(env_id, n_envs), seed=0, **options)
    if kind == "rltrack":
        return _train_with_rltrack(model, steps)
    if kind == "accelerated":
        from rltrack.acceleration import accelerate

        accelerate(model)
    if kind == "sbx":  # compilation is not counted
        model.learn(max(getattr(model, "n_steps", 0) * n_envs, 200))
    cpu, wall = time.process_time(), time.perf_counter()
    model.learn(steps)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _train_with_rltrack(model: Any, steps: int) -> dict[str, float]:
    """Train with a progress bar, journal, checkpoints and the delivery to MLflow and TensorBoard; time what `learn()` does."""
    from rltrack import ProgressReporter, TrainingHook, TrainingLoop
    from rltrack.tracking.sinks.embedded import ensure_database

    class Clock(TrainingHook):
        cpu = wall = 0.0

        def on_training_start(self, progress: Any) -> None:
            self.cpu, self.wall = time.process_time(), time.perf_counter()

        def on_training_end(self, progress: Any) -> None:
            self.cpu, self.wall = time.process_time() - self.cpu, time.perf_counter() - self.wall

    clock = Clock()
    with tempfile.TemporaryDirectory() as root:
        ensure_database(Path(root))  # once for each root, not once for each training
        reporter = ProgressReporter(console=True)
        loop = TrainingLoop(model, total_timesteps=steps, hooks=[clock], reporter=reporter, root=root)
        loop.run()
        if not loop.wait_for_tracking(120):
            raise RuntimeError("the training was not delivered")
    return {"cpu": clock.cpu, "wall": clock.wall}


def as_markdown(rows: list[Times], command: str) -> str:
    """Return the table."""
    kinds = [kind for kind in KINDS if rows and kind in rows[0].cpu]
    heads = [f"{TITLES[kind]}, CPU s (wall)" for kind in kinds]
    lines = [
        f"`{command}`: fastest of several, one thread, CPU (wall) seconds of the training process.",
        "",
        "| training | " + " | ".join(heads) + " | rltrack / `learn()` | bar |",
        "|---|" + "---:|" * (len(kinds) + 2),
    ]
    for row in rows:
        times = " | ".join(f"{row.cpu[kind]:.2f} ({row.wall[kind]:.2f})" for kind in kinds)
        case, ratio = row.case, row.ratio("rltrack")
        lines.append(f"| {case.name}, {case.steps:,} steps | {times} | **{ratio:.2f}** | {case.bar:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    kind, algorithm, env_id, n_envs, steps, layers = sys.argv[1:]
    print(
        json.dumps(
            _train(kind, algorithm, env_id, int(n_envs), int(steps), [int(size) for size in layers.split(",") if size])
        )
    )
