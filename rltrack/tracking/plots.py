"""Plots of one run; PNG files fit for a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from rltrack.tracking.metrics import EPISODE_WINDOW

if TYPE_CHECKING:
    from rltrack.tracking.metrics import MetricsTracker

# Okabe and Ito's colours, distinguished by most colour-blind readers
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_EPISODE_DOTS = 4000
LARGEST = 1e100


def draw_run(
    metrics: MetricsTracker, folder: Path, title: str = "", resources: MetricsTracker | None = None
) -> list[Path]:
    """Draw everything there is to draw of a run.

    Args:
        metrics: The run's history.
        folder: Where the PNG files go.
        title: Put above each plot.
        resources: Samples under ``system/`` keys, if there are any.

    Returns:
        The files that were written: ``learning_curve.png``, ``losses.png``, ``throughput.png``, ``resources.png``, as far
        as there is something to show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if metrics.evaluations or metrics.episodes:
        drawn.append(save_figure(_learning_curve(metrics, title), folder / "learning_curve.png"))
    training = [key for key in metrics.keys() if key.startswith("train/")]  # noqa: SIM118
    if training:
        drawn.append(save_figure(_grid(metrics, training, f"{title}: training"), folder / "losses.png"))
    if "time/fps" in metrics:
        drawn.append(save_figure(_throughput(metrics, title), folder / "throughput.png"))
    if resources is not None and resources.keys():
        drawn.append(save_figure(_resources(resources, title), folder / "resources.png"))
    return drawn


def drawable(values: Any) -> np.ndarray:
    """Return values with NaN for what no axis can hold: matplotlib fails where the range of one is no float."""
    array = np.asarray(values, dtype=float)
    return np.where(np.abs(array) <= LARGEST, array, np.nan)


def _learning_curve(metrics: MetricsTracker, title: str) -> Figure:
    figure, axes = new_figure(title)
    if metrics.episodes:
        steps = np.array([episode[0] for episode in metrics.episodes])
        returns = drawable([episode[1] for episode in metrics.episodes])
        shown = slice(None, None, max(1, math.ceil(len(steps) / _EPISODE_DOTS)))
        axes.plot(steps[shown], returns[shown], ".", color="#BBBBBB", markersize=3, label="training episodes", zorder=1)
        if len(returns) >= 2:
            running = metrics.running_returns
            label = f"mean of the last {EPISODE_WINDOW}"
            axes.plot(running.steps, drawable(running.values), color=COLORS[1], linewidth=1.6, label=label, zorder=2)
    if metrics.evaluations:
        _evaluation_band(axes, metrics, COLORS[0], "evaluation, mean and 95 % interval")
    axes.set_ylabel("return per episode")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def _evaluation_band(axes: Any, metrics: MetricsTracker, color: str, label: str) -> None:
    steps = [record["step"] for record in metrics.evaluations]
    means = drawable([record["mean"] for record in metrics.evaluations])
    low, high = zip(*(record["interval"] for record in metrics.evaluations), strict=True)
    axes.fill_between(steps, drawable(low), drawable(high), color=color, alpha=0.2, linewidth=0, zorder=3)
    axes.plot(steps, means, color=color, marker="o", markersize=4, linewidth=1.8, label=label, zorder=4)


def _grid(metrics: MetricsTracker, keys: Sequence[str], title: str) -> Figure:
    telling = [key for key in keys if not key.endswith("n_updates")]  # a straight line shows nothing
    varying = [key for key in telling if np.unique(metrics.history(key).values).size > 1] or telling or list(keys)
    columns = min(3, len(varying))
    rows = math.ceil(len(varying) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows + 0.4), layout="constrained")
    for index, key in enumerate(varying):
        axes = figure.add_subplot(rows, columns, index + 1)
        series = metrics.history(key)
        axes.plot(series.steps, drawable(series.values), color=COLORS[0], linewidth=1.0)
        axes.set_title(key.partition("/")[2].replace("_", " "), fontsize=10)
        _plain(axes)
    figure.suptitle(title, fontsize=12)
    figure.supxlabel("env steps", fontsize=10)
    return figure


def _throughput(metrics: MetricsTracker, title: str) -> Figure:
    figure, axes = new_figure(title)
    series = metrics.history("time/fps")
    moving = series.values > 0  # the first record has no earlier one to measure from
    axes.plot(series.steps[moving], drawable(series.values[moving]), color=COLORS[0], linewidth=1.2)
    axes.set_ylabel("env steps per second")
    axes.set_ylim(bottom=0)
    return figure


def _resources(resources: MetricsTracker, title: str) -> Figure:
    keys = resources.keys()
    panels = [
        ("memory (MB)", [key for key in keys if key.endswith("megabytes") and "system_memory" not in key]),
        ("use (%)", [key for key in keys if "cpu" in key or "utilization" in key]),
    ]
    panels = [(label, found) for label, found in panels if found]
    figure = Figure(figsize=(8, 2.8 * len(panels) + 0.4), layout="constrained")
    begin = min(resources.history(key).times[0] for key in keys)
    end = max(resources.history(key).times[-1] for key in keys)
    unit, seconds = ("minutes", 60.0) if end - begin > 180 else ("seconds", 1.0)
    for index, (label, found) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, index + 1)
        for number, key in enumerate(found):
            series = resources.history(key)
            name = key.removeprefix("system/").replace("_", " ").removesuffix(" megabytes").removesuffix(" percentage")
            axes.plot(
                (series.times - begin) / seconds,
                series.values,
                marker=".",
                color=COLORS[number % len(COLORS)],
                label=name,
            )
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.15 * max(1.0, *(float(resources.history(key).values.max()) for key in found)))
        axes.legend(frameon=False, fontsize=8)
        _plain(axes, steps=False)
    figure.supxlabel(unit, fontsize=10)
    figure.suptitle(title, fontsize=12)
    return figure


def new_figure(title: str) -> tuple[Figure, Any]:
    """Return a figure with axes over env steps."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=12)
    axes.set_xlabel("env steps")
    _plain(axes)
    return figure, axes


def _plain(axes: Any, *, steps: bool = True) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    if steps:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
    return path
