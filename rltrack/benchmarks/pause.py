"""How long training pauses for a checkpoint, against SB3's own ``save`` of the same, in one process on one machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rltrack.agents import build_agent
from rltrack.config import TrainingConfig
from rltrack.training.train_loop import TrainingLoop

NEW_ROWS = 10_000
"""Env steps between two checkpoints of an off-policy agent: about a minute of training."""


@dataclass(frozen=True, slots=True)
class Pause:
    """One row of the table; times in milliseconds.

    Attributes:
        name: What was saved.
        ours: Pauses of training.
        committed: From the beginning of a pause until the version is on the disk.
        sb3: Times of ``model.save`` and, for an off-policy agent, ``save_replay_buffer``.
        bar: What the median of `ours` must not exceed; None for none.
    """

    name: str
    ours: list[float]
    committed: list[float]
    sb3: list[float]
    bar: float | None

    @property
    def passed(self) -> bool:
        """Whether the target is reached."""
        return self.bar is None or statistics.median(self.ours) <= self.bar


def measure_pauses(repeats: int = 15, buffer: int = 1_000_000) -> list[Pause]:
    """Measure PPO on CartPole-v1, and SAC on Pendulum-v1 with an empty, a tenth full and a full buffer."""
    rows = [_measure("PPO, CartPole-v1", "PPO", "CartPole-v1", {}, repeats, 10.0, 0)]
    for filled in (0, buffer // 10, buffer):
        name = f"SAC, Pendulum-v1, {filled:,} of {buffer:,} rows"
        rows.append(_measure(name, "SAC", "Pendulum-v1", {"buffer_size": buffer}, repeats, 25.0, filled))
    return rows


def _measure(name: str, algorithm: str, env_id: str, hyperparameters: dict[str, Any], repeats: int, bar: float,
             filled: int) -> Pause:  # fmt: skip
    config = TrainingConfig.from_mapping(
        {
            "seed": 0,
            "agent": {"algorithm": algorithm, "hyperparameters": hyperparameters, "device": "cpu"},
            "environment": {"id": env_id},
            "training": {"total_timesteps": 10**9, "checkpoint_seconds": None, "eval_freq": None},
        }
    )
    agent, env = build_agent(config)
    model: Any = agent.model
    live = TrainingLoop(agent, env, settings=config, tracking=False).prepare()
    live.start()
    for _ in range(3 if algorithm == "PPO" else 150):
        agent.advance(live.observer)
    if filled:
        _write_rows(model, filled)
    live.checkpoint()
    ours, committed, sb3 = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            if hasattr(model, "replay_buffer"):
                _write_rows(model, NEW_ROWS)
            begun = time.perf_counter()
            live.checkpoints.save(live.state_dict())
            ours.append(_ms(begun))
            live.checkpoints.record_committed(wait=True)
            committed.append(_ms(begun))
            sb3.append(_timed(lambda: _sb3_save(model, Path(folder))))
    live.close()
    env.close()
    return Pause(name, ours, committed, sb3, bar)


def _write_rows(model: Any, rows: int) -> None:
    """Write to the buffer as if the environment had been stepped so often."""
    replay, rng = model.replay_buffer, np.random.default_rng(0)
    model.num_timesteps += rows
    while rows:
        part = slice(replay.pos, min(replay.pos + rows, replay.buffer_size))
        for array in (replay.observations, replay.next_observations, replay.actions, replay.rewards):
            array[part] = rng.standard_normal(array[part].shape)
        rows -= part.stop - part.start
        replay.full = replay.full or part.stop == replay.buffer_size
        replay.pos = part.stop % replay.buffer_size


def _sb3_save(model: Any, folder: Path) -> None:
    model.save(folder / "model.zip")
    if hasattr(model, "replay_buffer"):
        model.save_replay_buffer(folder / "buffer.pkl")


def _timed(action: Callable[[], None]) -> float:
    begun = time.perf_counter()
    action()
    return _ms(begun)


def _ms(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000.0


def as_markdown(rows: list[Pause]) -> str:
    """Return the table of the documentation."""
    lines = [
        "| saved | pause of training: median (least – most) ms | until it is on the disk ms | SB3's own save ms | target ms |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ours = f"{statistics.median(row.ours):.1f} ({min(row.ours):.1f} – {max(row.ours):.1f})"
        others = [f"{statistics.median(values):.1f}" for values in (row.committed, row.sb3)]
        lines.append(f"| {row.name} | {ours} | {others[0]} | {others[1]} | {row.bar:g} |")
    return "\n".join(lines) + "\n"
