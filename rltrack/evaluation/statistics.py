"""Statistics of episode returns: pure functions of numbers.

Source:
    Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PART = 1_000_000
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Interval(NamedTuple):
    """A confidence interval, in reward units."""

    low: float
    high: float


def interquartile_mean(returns: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the mean of the middle half: robust to outliers, with less variance than the median.

    Args:
        returns: Shape ``(n,)``, in reward units; a quarter is cut off at each end, rounded down to whole returns,
            as ``scipy.stats.trim_mean`` cuts.

    Source:
        arXiv:2108.13264, section 4.3.
    """
    return float(_iqm(np.asarray(returns, dtype=np.float64)[None, :])[0])


def optimality_gap(returns: Sequence[float] | NDArray[np.float64], target: float) -> float:
    """Return how far returns are below a target on average; returns above the target count as the target.

    Args:
        returns: In reward units, any shape.
        target: The return at which an agent counts as optimal.

    Source:
        arXiv:2108.13264, section 4.3, with returns that are not normalised.
    """
    return float(target - np.minimum(np.asarray(returns, dtype=np.float64), target).mean())


def probability_of_improvement(
    ours: Sequence[float] | NDArray[np.float64], theirs: Sequence[float] | NDArray[np.float64]
) -> float:
    """Return the probability that a random one of our scores is above a random one of theirs; ties count half.

    Args:
        ours: Shape ``(n,)``.
        theirs: Shape ``(m,)``.

    Source:
        Mann-Whitney U over nm; arXiv:2108.13264, section 4.3.
    """
    left, right = np.asarray(ours, dtype=np.float64), np.sort(np.asarray(theirs, dtype=np.float64))
    below, up_to = np.searchsorted(right, left, "left"), np.searchsorted(right, left, "right")
    return float((below + up_to).mean() / 2 / right.size)


def improvement_interval(
    ours: Sequence[float] | NDArray[np.float64],
    theirs: Sequence[float] | NDArray[np.float64],
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Estimate a confidence interval for `probability_of_improvement`, both sides resampled."""
    both = np.concatenate([np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)])
    values, places = np.unique(both, return_inverse=True)
    left, right = places[: len(ours)], places[len(ours) :]
    rng = np.random.default_rng(seed)

    def counts(side: NDArray[np.intp], rows: int) -> NDArray[np.intp]:
        drawn = side[rng.integers(side.size, size=(rows, side.size))] + values.size * np.arange(rows)[:, None]
        return np.bincount(drawn.ravel(), minlength=rows * values.size).reshape(rows, values.size)

    estimates: list[float] = []
    while len(estimates) < resamples:  # in parts, as a part takes memory for each of its resamples and values
        rows = min(resamples - len(estimates), 1 + _PART // values.size)
        one, other = counts(left, rows), counts(right, rows)
        above = (one * (other.cumsum(axis=1) - other / 2)).sum(axis=1)
        estimates += (above / (left.size * right.size)).tolist()
    return _percentiles(estimates, level)


def stratified_interval(
    strata: Sequence[Sequence[float]],
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    statistic: str = "iqm",
) -> Interval:
    """Estimate a confidence interval for a statistic over several strata, each resampled by itself.

    Args:
        strata: Scores of each stratum, such as the returns of each seed's episodes, or the scores of each environment's runs.
        level: Coverage, in (0, 1).
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples.
        statistic: ``mean`` or ``iqm``, over all scores together.

    Source:
        Stratified percentile bootstrap; arXiv:2108.13264, section 4.1.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for scores in strata:
        values = np.asarray(scores, dtype=np.float64)
        parts.append(values[rng.integers(values.size, size=(resamples, values.size))])
    return _percentiles(_STATISTICS[statistic](np.concatenate(parts, axis=1)), level)


def score_distribution(
    scores: Sequence[float] | NDArray[np.float64], thresholds: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the fraction of scores above each threshold: a performance profile.

    Args:
        scores: Shape ``(n,)``.
        thresholds: Shape ``(k,)``.

    Returns:
        Shape ``(k,)``, between 0 and 1.

    Source:
        arXiv:2108.13264, section 4.2.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    return np.asarray(1.0 - np.searchsorted(ordered, np.asarray(thresholds), "right") / ordered.size)


def permutation_p_value(
    before: Sequence[float], now: Sequence[float], *, seed: int = 0, resamples: int = 4000
) -> float:
    """Return the probability of scores as low as `now` if both lists come from the same agent.

    A permutation test of the difference of means, one-sided: an alarm at values of `level` or less is false with a
    probability of at most `level`.

    Args:
        before: Shape ``(n,)``.
        now: Shape ``(m,)``.
        seed: Seed of the permutations.
        resamples: Number of permutations.

    Source:
        Ernst 2004, "Permutation methods: a basis for exact inference"; with the observed arrangement counted in.
    """
    both = np.concatenate([np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)])
    size = len(now)
    observed = both[-size:].sum()
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.broadcast_to(both, (resamples, both.size)), axis=1)[:, -size:].sum(axis=1)
    tolerance = 1e-9 * max(1.0, abs(float(observed)))
    return float((1 + np.count_nonzero(drawn <= observed + tolerance)) / (resamples + 1))


def _iqm(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interquartile mean along the last axis."""
    ordered = np.sort(samples, axis=-1)
    n = ordered.shape[-1]
    cut = int(0.25 * n)
    middle: NDArray[np.float64] = ordered[..., cut : n - cut].mean(axis=-1)
    return middle


def _mean(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(samples.mean(axis=-1), dtype=np.float64)


@np.errstate(all="ignore")  # NaN and infinities among the returns show in the result
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
        raise ValueError(f"level is {level}; it must be between 0 and 1, such as 0.95.")
    indices = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    return _percentiles(_STATISTICS[statistic](values[indices]), level)


_STATISTICS: dict[str, Statistic] = {"mean": _mean, "iqm": _iqm}


def _percentiles(estimates: Sequence[float] | NDArray[np.float64], level: float) -> Interval:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(estimates, [tail, 1.0 - tail])
    return Interval(float(low), float(high))
