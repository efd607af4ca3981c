"""Pictures of several groups of runs together; PNG files fit for a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rltrack.comparison.study import Curve
from rltrack.evaluation.statistics import score_distribution
from rltrack.tracking.plots import COLORS, LARGEST, drawable, new_figure, save_figure


def draw_curves(curves: Sequence[tuple[str, Curve]], path: Path, threshold: float | None = None) -> Path:
    """Draw the learning curves of several groups of runs in one plot, with bands.

    Args:
        curves: Label and curve of each group.
        path: The PNG file to write.
        threshold: Return to mark; None for none.
    """
    figure, axes = new_figure("Learning curves: mean return of evaluations, with 95 % bands")
    for index, (label, curve) in enumerate(curves):
        color = COLORS[index % len(COLORS)]
        axes.fill_between(curve.steps, drawable(curve.low), drawable(curve.high), color=color, alpha=0.2, linewidth=0)
        axes.plot(curve.steps, drawable(curve.mean), color=color, marker="o", markersize=3, linewidth=1.8, label=label)
    if threshold is not None:
        axes.axhline(
            threshold, color="#888888", linewidth=1.0, linestyle="--", label=f"threshold {threshold:g}", zorder=0
        )
    axes.set_ylabel("return per episode")
    axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)


def draw_improvement(labels: Sequence[str], matrix: Sequence[Sequence[float]], path: Path) -> Path:
    """Draw the matrix of probabilities that the row's group is better than the column's."""
    size = max(4.0, 1.1 * len(labels) + 2.5)
    figure = Figure(figsize=(size, 0.75 * size), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(np.asarray(matrix), vmin=0.0, vmax=1.0, cmap="RdBu", alpha=0.75)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            axes.text(column, row, "" if row == column else f"{value:.2f}", ha="center", va="center", fontsize=11)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=9)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_title("Probability that the row is better than the column", fontsize=11)
    for side in axes.spines.values():
        side.set_visible(False)
    return save_figure(figure, path)


def draw_distributions(scores: Sequence[tuple[str, Sequence[float]]], path: Path) -> Path:
    """Draw for each group the fraction of final episodes with a return above a threshold, over the threshold."""
    figure, axes = new_figure("Score distributions: fraction of final episodes with a higher return")
    values = [value for _, group in scores for value in group if abs(value) <= LARGEST] or [0.0]
    thresholds = np.linspace(min(values), max(values), 300) if max(values) > min(values) else np.array(values[:1])
    for index, (label, group) in enumerate(scores):
        heights = score_distribution(group, thresholds)
        axes.plot(
            thresholds, heights, color=COLORS[index % len(COLORS)], linewidth=1.8, label=label, drawstyle="steps-post"
        )
    axes.set_xlabel("return per episode")
    axes.set_ylabel("fraction of episodes")
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)
