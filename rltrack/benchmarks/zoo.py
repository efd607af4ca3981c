"""The whole of ``rltrack train`` against ``rl_zoo3.train``: same settings, evaluations and checkpoints, from a cold start.

Both play the same number of evaluation episodes at the same marks, each as it does by default: rltrack in up to ten
environments at a time, rl_zoo3 in one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rltrack.errors import MissingExtra, RltrackError
from rltrack.processes import python_command

BAR = 0.5
STEPS, EVAL_FREQ, EPISODES, SAVE_FREQ = 50_000, 10_000, 20, 25_000


@dataclass
class WholeProcess:
    """Wall times of whole commands, in seconds.

    Attributes:
        rltrack: Of ``rltrack train``, with the wait for its delivery.
        zoo: Of ``python -m rl_zoo3.train``.
    """

    rltrack: list[float] = field(default_factory=list)
    zoo: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Fastest over fastest."""
        return min(self.rltrack) / min(self.zoo)

    @property
    def passed(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= BAR


def compare_with_zoo(trials: int = 5, notify: Callable[[str], None] = print) -> WholeProcess:
    """Train PPO on CartPole-v1 with rl_zoo3's tuned settings in both ways, interleaved.

    Raises:
        MissingExtra: If rl_zoo3 is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("rl_zoo3") is None:
        raise MissingExtra("The comparison needs rl_zoo3. Install it with: pip install 'rltrack[zoo]'")
    found = WholeProcess()
    with tempfile.TemporaryDirectory() as folder:
        for trial in range(trials):
            found.rltrack.append(timed(rltrack_command(f"{folder}/mlruns", trial)))
            found.zoo.append(timed(zoo_command(f"{folder}/zoo", trial)))
            notify(f"trial {trial + 1}: rltrack {found.rltrack[-1]:.1f} s, rl_zoo3 {found.zoo[-1]:.1f} s")
    return found


def rltrack_command(root: str, seed: int) -> list[str]:
    """Return the command of rltrack."""
    settings = [
        *("agent.preset=zoo", "agent.device=cpu", f"training.eval_freq={EVAL_FREQ}", f"evaluation.episodes={EPISODES}"),
        *(f"training.checkpoint_freq={SAVE_FREQ}", "training.checkpoint_seconds=null"),
        "tracking.video=false",  # made after the command has ended: it would slow the next one, and rl_zoo3 makes none
    ]
    return [
        *python_command("rltrack", "--root", root, "train", "--algo", "ppo", "--env", "CartPole-v1"),
        *("--timesteps", str(STEPS), "--seed", str(seed)),
        *(part for setting in settings for part in ("--set", setting)),
    ]


def zoo_command(folder: str, seed: int) -> list[str]:
    """Return the command of rl_zoo3."""
    return [
        *python_command("rl_zoo3.train", "--algo", "ppo", "--env", "CartPole-v1", "-n", str(STEPS)),
        *("--eval-freq", str(EVAL_FREQ), "--eval-episodes", str(EPISODES)),
        *("--save-freq", str(SAVE_FREQ), "--seed", str(seed), "-f", folder, "--tensorboard-log", f"{folder}/tb"),
        *("--device", "cpu", "--num-threads", "1"),
    ]


def as_markdown(found: WholeProcess) -> str:
    """Return the figures as a table."""
    return (
        "| whole command, wall time | fastest | median | trials |\n|---|---:|---:|---:|\n"
        f"| `rltrack train`, with MLflow, TensorBoard and plots | {min(found.rltrack):.1f} s | "
        f"{statistics.median(found.rltrack):.1f} s | {len(found.rltrack)} |\n"
        f"| `rl_zoo3.train`, with TensorBoard | {min(found.zoo):.1f} s | {statistics.median(found.zoo):.1f} s | "
        f"{len(found.zoo)} |\n\nFastest over fastest: **{found.ratio:.2f}** (target {BAR}).\n"
    )


def timed(command: list[str]) -> float:
    """Run a whole command; return its wall time in seconds.

    Raises:
        RltrackError: If it failed.
    """
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        environment.pop(name, None)
    begin = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise RltrackError(f"{' '.join(command)} failed: {done.stderr[-1500:]}")
    return seconds
