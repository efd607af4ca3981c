"""What a training episode, and an evaluation, came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rltrack.evaluation.statistics import Interval, bootstrap_interval, interquartile_mean
from rltrack.journal.values import means_of


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """One finished training episode.

    Attributes:
        episode_return: Undiscounted sum of raw rewards.
        length: Env steps.
        env_steps: Env steps of the run when it ended.
        env_index: Which of the parallel environments it ran in.
        infos: Values of its last info by their key: ``is_success``, and the `info_keywords` of SB3's Monitor.
    """

    episode_return: float
    length: int
    env_steps: int
    env_index: int = 0
    infos: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Raw results of one evaluation.

    Attributes:
        env_steps: Env steps of training at which the policy was frozen.
        returns: Undiscounted raw return per episode, in reward units.
        lengths: Env steps per episode.
        interval: 95 % bootstrap confidence interval of the mean return.
        seconds: Wall time.
        deterministic: Whether the policy acted by its mode.
        cut: Number of episodes that were ended by a limit.
        infos: Values of the last info of each episode by their key: ``is_success``, and `environment.info_keywords`; None for an
            episode without a value.
    """

    env_steps: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    interval: Interval
    seconds: float = 0.0
    deterministic: bool = True
    cut: int = 0
    infos: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, env_steps: int, returns: Sequence[float], lengths: Sequence[int] = (), *, seed: int = 0, **more: Any
    ) -> Evaluation:
        """Build from returns alone; the interval is computed."""
        lengths = tuple(int(length) for length in lengths) or (0,) * len(returns)
        interval = bootstrap_interval(returns, seed=seed)
        return cls(env_steps, tuple(float(value) for value in returns), lengths, interval, **more)

    @property
    @np.errstate(all="ignore")
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def mean_infos(self) -> dict[str, float]:
        """Mean of each of `infos` over the episodes that have a value; that of ``is_success`` is the success rate."""
        return means_of(self.infos)

    @property
    @np.errstate(all="ignore")
    def std(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))

    @property
    @np.errstate(all="ignore")
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    @np.errstate(all="ignore")
    def iqm(self) -> float:
        """Interquartile mean of the returns."""
        return interquartile_mean(self.returns)

    def summary(self) -> str:
        """Return mean, interval and number of episodes as one phrase."""
        if len(self.returns) == 1:
            return f"mean return {self.mean:.6g} (1 episode)"
        low, high = self.interval
        return f"mean return {self.mean:.6g} (95 % interval {low:.6g} to {high:.6g}, {len(self.returns)} episodes)"

    def to_record(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "mean": self.mean,
            "std": self.std,
            "median": self.median,
            "iqm": self.iqm,
            "interval": list(self.interval),
            "seconds": self.seconds,
            "deterministic": self.deterministic,
            **({"cut": self.cut} if self.cut else {}),
            **({"infos": {key: list(values) for key, values in self.infos.items()}} if self.infos else {}),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Evaluation:
        """Read back a journal's ``evaluation`` record."""
        return cls(
            env_steps=int(record["step"]),
            returns=tuple(record["returns"]),
            lengths=tuple(record["lengths"]),
            interval=Interval(*record["interval"]),
            seconds=float(record["seconds"]),
            deterministic=bool(record["deterministic"]),
            cut=int(record.get("cut", 0)),
            infos=dict(record.get("infos", {})),
        )
