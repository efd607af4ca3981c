"""What Prefect costs: ``rltrack flow train`` against ``rltrack train``, whole commands, with a server running."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rltrack.benchmarks.zoo import timed
from rltrack.processes import python_command

BAR = 1.15
STEPS = 240_000
"""About a minute of training."""


@dataclass
class Orchestration:
    """What was measured.

    Attributes:
        plain: Wall times of ``rltrack train``, in seconds.
        flow: Of ``rltrack flow train``.
        server_cpu: CPU seconds that Prefect's server took during each flow.
    """

    plain: list[float] = field(default_factory=list)
    flow: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Fastest over fastest."""
        return min(self.flow) / min(self.plain)

    @property
    def passed(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= BAR


def measure_orchestration(trials: int = 3, notify: Callable[[str], None] = print) -> Orchestration:
    """Train PPO on CartPole-v1 for about a minute in both ways, interleaved."""
    from rltrack.flows.server import ServerFolder, hold_server

    found = Orchestration()
    with tempfile.TemporaryDirectory() as folder, hold_server(Path(folder)):
        server = psutil.Process(ServerFolder(Path(folder)).pid())
        for trial in range(trials):
            found.plain.append(timed(_command(folder, "train", trial)))
            before = sum(server.cpu_times()[:2])
            found.flow.append(timed(_command(folder, "flow train", trial)))
            found.server_cpu.append(sum(server.cpu_times()[:2]) - before)
            notify(
                f"trial {trial + 1}: rltrack train {found.plain[-1]:.1f} s, rltrack flow train {found.flow[-1]:.1f} s, "
                f"server {found.server_cpu[-1]:.1f} s of CPU"
            )
    return found


def as_markdown(found: Orchestration) -> str:
    """Return the figures as a table."""
    return (
        "| whole command, wall time | fastest | median | trials |\n|---|---:|---:|---:|\n"
        f"| `rltrack train` | {min(found.plain):.1f} s | {statistics.median(found.plain):.1f} s | {len(found.plain)} |\n"
        f"| `rltrack flow train`, with a server running | {min(found.flow):.1f} s | {statistics.median(found.flow):.1f} s | "
        f"{len(found.flow)} |\n\nFastest over fastest: **{found.ratio:.2f}** (target {BAR}). Prefect's server took "
        f"{statistics.median(found.server_cpu):.1f} s of CPU during that time.\n"
    )


def _command(root: str, verb: str, trial: int) -> list[str]:
    settings = ["n_steps=32", "batch_size=256", "n_epochs=20"]
    return [
        *python_command("rltrack", "--root", root, *verb.split(), "--algo", "ppo", "--env", "CartPole-v1"),
        *("--timesteps", str(STEPS), "--name", f"{verb.replace(' ', '-')}-{trial}", "--set", "environment.n_envs=8"),
        *(part for setting in settings for part in ("--set", f"agent.hyperparameters.{setting}")),
        *("--set", "agent.device=cpu", "--set", "training.eval_freq=20000", "--set", "training.checkpoint_freq=40000"),
    ]
