"""How mean returns are ordered. NaN and infinities are no scores: they are never the best, and come last in a list."""

from __future__ import annotations

import math


def is_score(value: object) -> bool:
    """Whether a value can be compared with others: a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def rank(value: float | None) -> float:
    """Return what values are sorted by, the best last; what is no score comes first."""
    return float(value) if value is not None and is_score(value) else -math.inf


def is_better(value: float, best: float | None, by: float = 0.0) -> bool:
    """Whether a value exceeds the best one so far by more than `by`; any score exceeds none."""
    return is_score(value) and (best is None or not is_score(best) or value > best + by)
