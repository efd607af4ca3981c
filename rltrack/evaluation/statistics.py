"""Statistics of episode returns: pure functions of numbers.

Source:
    Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Interval(NamedTuple):
    """A confidence interval, in reward units."""

    low: float
    high: float


def interquartile_mean(returns: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the mean of the middle half: robust to outliers, and steadier than the median.

    Args:
        returns: Shape ``(n,)``, in reward units; a quarter is cut off at each end, fractions of an element weighted.

    Source:
        arXiv:2108.13264, section 4.3.
    """
    return float(_iqm(np.asarray(returns, dtype=np.float64)[None, :])[0])


def _iqm(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interquartile mean along the last axis, as scipy.stats.trim_mean(proportiontocut=0.25) cuts."""
    ordered = np.sort(samples, axis=-1)
    n = ordered.shape[-1]
    cut = int(0.25 * n)
    middle: NDArray[np.float64] = ordered[..., cut : n - cut].mean(axis=-1)
    return middle


def _mean(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(samples.mean(axis=-1), dtype=np.float64)


def bootstrap_interval(
    returns: Sequence[float] | NDArray[np.float64],
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    statistic: str = "mean",
) -> Interval:
    """Estimate a confidence interval for the mean (or interquartile mean) episode return.

    Args:
        returns: Undiscounted return per episode, shape ``(n_episodes,)``, in reward units.
        level: Coverage, in (0, 1).
        seed: Seed of the resampling; equal seeds give equal intervals.
        resamples: Number of bootstrap samples.
        statistic: ``mean`` or ``iqm``.

    Returns:
        Lower and upper bound, in reward units; both equal the one return where there is only one.

    Raises:
        ValueError: If `returns` is empty, or `level` is outside (0, 1).

    Source:
        Percentile bootstrap; see arXiv:2108.13264, section 4.
    """
    values = np.asarray(returns, dtype=np.float64)
    if values.size == 0:
        raise ValueError("No episodes, so there is no interval; play at least one.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, such as 0.95.")
    compute: Statistic = {"mean": _mean, "iqm": _iqm}[statistic]
    indices = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    estimates = compute(values[indices])
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(estimates, [tail, 1.0 - tail])
    return Interval(float(low), float(high))
