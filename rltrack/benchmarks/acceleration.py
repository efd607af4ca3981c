"""What `rltrack.accelerate` gains over Stable-Baselines3's own `learn()`, and SBX's time where it is installed.

Every training runs in a process of its own with one thread; the kinds alternate, and the fastest of each counts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

KINDS = ("sb3", "accelerated", "sbx")


@dataclass(frozen=True, slots=True)
class Case:
    """A training to measure.

    Attributes:
        algorithm: Name of the class.
        env_id: Gymnasium's name.
        n_envs: Number of environments.
        steps: Env steps.
        bar: What the ratio of CPU times must not exceed.
    """

    algorithm: str
    env_id: str
    n_envs: int
    steps: int
    bar: float

    @property
    def name(self) -> str:
        """Words for a table."""
        return f"{self.algorithm} {self.env_id}, {self.n_envs} env{'s' * (self.n_envs > 1)}"


CASES = (
    Case("PPO", "CartPole-v1", 1, 8192, 0.55),
    Case("PPO", "CartPole-v1", 8, 16384, 0.70),
    Case("PPO", "Pendulum-v1", 1, 6144, 0.57),
    Case("A2C", "CartPole-v1", 1, 6000, 0.60),
    Case("DQN", "CartPole-v1", 1, 8000, 0.55),
    Case("SAC", "Pendulum-v1", 1, 1200, 0.88),
    Case("TD3", "Pendulum-v1", 1, 1200, 0.88),
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

    @property
    def ratio(self) -> float:
        """CPU time with acceleration over that without."""
        return self.cpu["accelerated"] / self.cpu["sb3"]

    @property
    def passed(self) -> bool:
        """Whether the bar is kept."""
        return self.ratio <= self.case.bar


def measure_acceleration(
    only: Collection[str] = (), trials: int = 5, tell: Callable[[str], None] = lambda _: None
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
                tell(f"{case.name}, {kind}, trial {trial + 1}: {runs[kind][-1]['cpu']:.2f} s CPU")
        cpu, wall = ({kind: min(run[key] for run in own) for kind, own in runs.items()} for key in ("cpu", "wall"))
        found.append(Times(case, cpu, wall))
    return found


def _in_a_process(kind: str, case: Case) -> dict[str, float]:
    words = [kind, case.algorithm, case.env_id, str(case.n_envs), str(case.steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rltrack.benchmarks.acceleration", *words]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _train(kind: str, algorithm: str, env_id: str, n_envs: int, steps: int) -> dict[str, float]:
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    package: Any = importlib.import_module("sbx") if kind == "sbx" else stable_baselines3
    options = {} if kind == "sbx" else {"device": "cpu"}
    model = getattr(package, algorithm)("MlpPolicy", make_vec_env(env_id, n_envs), seed=0, **options)
    if kind == "accelerated":
        from rltrack.acceleration import accelerate

        accelerate(model)
    if kind == "sbx":  # compilation is not counted
        model.learn(max(getattr(model, "n_steps", 0) * n_envs, 200))
    cpu, wall = time.process_time(), time.perf_counter()
    model.learn(steps)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def as_markdown(rows: list[Times], command: str) -> str:
    """Return the table."""
    kinds = [kind for kind in KINDS if rows and kind in rows[0].cpu]
    titles = {"sb3": "SB3", "accelerated": "accelerated", "sbx": "SBX"}
    heads = [f"{titles[kind]}, CPU s (wall)" for kind in kinds]
    lines = [
        f"`{command}`: fastest of several, one thread, CPU (wall) seconds of `learn()`.",
        "",
        "| training | " + " | ".join(heads) + " | ratio of CPU | bar |",
        "|---|" + "---:|" * (len(kinds) + 2),
    ]
    for row in rows:
        times = " | ".join(f"{row.cpu[kind]:.2f} ({row.wall[kind]:.2f})" for kind in kinds)
        lines.append(f"| {row.case.name}, {row.case.steps:,} steps | {times} | {row.ratio:.2f} | {row.case.bar:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(_train(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
