"""Where a network learns faster: gradient steps and acting on the CPU and on the GPU, side by side.

It shows which value of `rltrack.agents.devices.WORK` fits this machine.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltrack.agents import build_agent
from rltrack.config import TrainingConfig

NETWORKS = ([64, 64], [256, 256], [512, 512], [1024, 1024], [2048, 2048])
BATCHES = (64, 256, 1024, 4096)
_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Timing:
    """One network on two devices.

    Attributes:
        network: Its hidden layers.
        batch: Observations of a gradient step.
        parameters: Number of weights.
        cpu: Seconds of an iteration of 4096 env steps and ten epochs, on the CPU.
        cuda: Likewise on the GPU; None without one.
    """

    network: list[int]
    batch: int
    parameters: int
    cpu: float
    cuda: float | None


def measure(threads: int, notify: Callable[[str], None]) -> list[Timing]:
    """Time PPO's iteration (4096 env steps in 32 environments, ten epochs) for networks and batch sizes."""
    from rltrack.agents.devices import describe_cuda

    has_gpu = describe_cuda() is not None
    found = []
    for network in NETWORKS:
        for batch in BATCHES:
            cpu, parameters = _iteration_seconds(network, batch, "cpu", threads)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="You are trying to run PPO on the GPU")
                cuda = _iteration_seconds(network, batch, "cuda", threads)[0] if has_gpu else None
            found.append(Timing(list(network), batch, parameters, cpu, cuda))
            gain = "" if cuda is None else f", GPU {cuda:.3f} s: {cpu / cuda:.2f} times as fast"
            notify(f"{network} batch {batch}: {parameters * batch:.1e} of work, CPU {cpu:.3f} s{gain}")
    return found


class _NullObserver:
    wants_steps = False

    def on_step(self, count: int, step: Any) -> None:
        """Do nothing."""

    def on_episode_end(self, episode: Any) -> None:
        """Do nothing."""


def _iteration_seconds(network: list[int], batch: int, device: str, threads: int) -> tuple[float, int]:
    config = TrainingConfig.from_mapping(
        {
            "agent": {
                "algorithm": "PPO",
                "hyperparameters": {"n_steps": 128, "batch_size": batch, "n_epochs": 10,
                                    "policy_kwargs": {"net_arch": list(network)}},
                "device": device,
                "threads": threads,
            },
            "environment": {"id": "CartPole-v1", "n_envs": 32},
            "training": {"total_timesteps": 10**9, "eval_freq": None},
        }
    )  # fmt: skip
    agent, env = build_agent(config)
    agent.allow_probe(False)
    agent.bind(env, 0)
    agent.set_schedule(1.0)
    try:
        agent.advance(_NullObserver())
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < _SECONDS or count < 2:
            agent.advance(_NullObserver())
            count += 1
        return spent / count, int(agent.describe()["n_parameters"])
    finally:
        agent.release()
        env.close()
